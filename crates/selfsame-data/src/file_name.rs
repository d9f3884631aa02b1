//! The two file-name grammars that carry labels: AgeDB's and UTKFace's.

use std::collections::BTreeMap;

/// Ages above this are taken for a mistake, so the name does not parse.
const MAX_AGE: u32 = 150;

/// What an AgeDB name says: `id_name_age_gender.ext`, as in `0_MariaCallas_35_f.jpg`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgeDbName {
    /// The person.
    pub name: String,
    /// Age in years.
    pub age: u32,
    /// `m` or `f`.
    pub gender: char,
}

impl AgeDbName {
    /// Parses a file name without folders.
    ///
    /// # Errors
    /// One phrase that says which part is wrong.
    pub fn parse(file_name: &str) -> Result<Self, String> {
        let stem = stem(file_name)?;
        let parts: Vec<&str> = stem.split('_').collect();
        let [id, name, age, gender] = parts[..] else {
            return Err(format!(
                "{} parts instead of id_name_age_gender",
                parts.len()
            ));
        };
        digits(id).ok_or_else(|| format!("id {id:?} is not a number"))?;
        if name.is_empty() {
            return Err("the name is empty".to_owned());
        }
        let gender = match gender {
            "m" | "M" => 'm',
            "f" | "F" => 'f',
            other => return Err(format!("gender {other:?} is neither m nor f")),
        };
        Ok(Self {
            name: name.to_owned(),
            age: parse_age(age)?,
            gender,
        })
    }

    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("name".to_owned(), self.name.clone()),
            ("age".to_owned(), self.age.to_string()),
            ("gender".to_owned(), self.gender.to_string()),
        ])
    }
}

/// What a UTKFace name says: `age_gender_race_date.ext`, as in `25_0_2_20170116174525125.jpg`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UtkFaceName {
    /// Age in years.
    pub age: u32,
    /// `m` (0 in the name) or `f` (1).
    pub gender: char,
    /// 0 to 4, as in the data set's own description.
    pub race: u32,
}

impl UtkFaceName {
    /// Parses a file name without folders; what follows the first dot (`.jpg.chip.jpg`) is free.
    ///
    /// # Errors
    /// One phrase that says which part is wrong.
    pub fn parse(file_name: &str) -> Result<Self, String> {
        let stem = stem(file_name)?;
        let parts: Vec<&str> = stem.split('_').collect();
        let [age, gender, race, date] = parts[..] else {
            return Err(format!(
                "{} parts instead of age_gender_race_date",
                parts.len()
            ));
        };
        let gender = match gender {
            "0" => 'm',
            "1" => 'f',
            other => return Err(format!("gender {other:?} is neither 0 nor 1")),
        };
        let age = parse_age(age)?;
        let race = digits(race)
            .filter(|&race| race <= 4)
            .ok_or_else(|| format!("race {race:?} is not one of 0 to 4"))?;
        if date.is_empty() || !date.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("date {date:?} is not a number"));
        }
        Ok(Self { age, gender, race })
    }

    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("age".to_owned(), self.age.to_string()),
            ("gender".to_owned(), self.gender.to_string()),
            ("race".to_owned(), self.race.to_string()),
        ])
    }
}

/// What stands before the first dot.
fn stem(file_name: &str) -> Result<&str, String> {
    file_name
        .split_once('.')
        .map(|(stem, _)| stem)
        .ok_or_else(|| "no extension".to_owned())
}

fn digits(text: &str) -> Option<u32> {
    // `parse` alone would take "+5".
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

fn parse_age(text: &str) -> Result<u32, String> {
    let age = digits(text).ok_or_else(|| format!("age {text:?} is not a number"))?;
    if age > MAX_AGE {
        return Err(format!("age {age} is above {MAX_AGE}"));
    }
    Ok(age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agedb_names_give_person_age_and_gender() {
        let parsed = AgeDbName::parse("1234_IñakiO'Neil-Roe_035_F.jpg").unwrap();
        assert_eq!(
            parsed,
            AgeDbName {
                name: "IñakiO'Neil-Roe".to_owned(),
                age: 35,
                gender: 'f'
            }
        );
        assert_eq!(parsed.labels()["age"], "35");
    }

    #[test]
    fn utkface_names_give_age_gender_and_race() {
        let parsed = UtkFaceName::parse("100_1_0_20170112213500903.jpg.chip.jpg").unwrap();
        assert_eq!(
            parsed,
            UtkFaceName {
                age: 100,
                gender: 'f',
                race: 0
            }
        );
        assert_eq!(UtkFaceName::parse("7_0_4_1.png").unwrap().gender, 'm');
    }

    #[test]
    fn a_name_that_does_not_parse_says_which_part_is_wrong() {
        for (name, word) in [
            ("holiday.jpg", "1 parts"),
            ("1_A_B_30_m.jpg", "5 parts"),
            ("x_A_30_m.jpg", "id"),
            ("1__30_m.jpg", "name"),
            ("1_A_3x_m.jpg", "age"),
            ("1_A_+3_m.jpg", "age"),
            ("1_A__m.jpg", "age"),
            ("1_A_999_m.jpg", "above"),
            ("1_A_99999999999_m.jpg", "age"),
            ("1_A_30_x.jpg", "gender"),
            ("1_A_30_m", "extension"),
            ("", "extension"),
        ] {
            let problem = AgeDbName::parse(name).unwrap_err();
            assert!(problem.contains(word), "{name}: {problem}");
        }
        for (name, word) in [
            ("61_1_20170109142408075.jpg.chip.jpg", "3 parts"),
            ("61_3_1_20170109142408075.jpg", "gender"),
            ("61_1_5_20170109142408075.jpg", "race"),
            ("61_1_1_yesterday.jpg", "date"),
            ("61_1_1_.jpg", "date"),
        ] {
            let problem = UtkFaceName::parse(name).unwrap_err();
            assert!(problem.contains(word), "{name}: {problem}");
        }
    }

    #[test]
    fn no_name_parses_as_both() {
        for name in ["0_MariaCallas_35_f.jpg", "25_0_2_20170116174525125.jpg"] {
            assert!(AgeDbName::parse(name).is_ok() != UtkFaceName::parse(name).is_ok());
        }
    }
}
