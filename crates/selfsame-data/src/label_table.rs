//! The labels of all samples of a data set, a few bytes each.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

/// Values by row and column. Each column keeps every text it has once, and a row only its number:
/// a million rows share few texts, and would be allocated and freed one by one otherwise.
#[derive(Debug, Default)]
pub(crate) struct LabelTable {
    columns: Vec<Column>,
    /// Row after row: the number of a text, counted from 1, or 0 for no value.
    cells: Vec<u32>,
}

#[derive(Debug)]
struct Column {
    name: String,
    texts: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32, RandomState>,
}

impl Column {
    /// The number of a text that stands in this column, counted from 1; a new one is checked.
    fn number_of<E>(
        &mut self,
        text: &str,
        check: impl FnOnce(&str, &str) -> Result<(), E>,
    ) -> Result<u32, E> {
        if let Some(known) = self.numbers.get(text) {
            return Ok(*known);
        }
        check(&self.name, text)?;
        let text: Arc<str> = text.into();
        self.texts.push(text.clone());
        let number = u32::try_from(self.texts.len()).expect("fewer than 2³² texts fit in memory");
        self.numbers.insert(text, number);
        Ok(number)
    }
}

impl LabelTable {
    /// Columns of these names, and no rows.
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let column = |name| Column {
            name,
            texts: Vec::new(),
            numbers: HashMap::default(),
        };
        Self {
            columns: names.into_iter().map(column).collect(),
            cells: Vec::new(),
        }
    }

    /// Adds the next row: `value_of` gives the value of a column by its position and name, and
    /// `check` looks at a column's name and a value that is new in it.
    ///
    /// # Errors
    /// The first error of `check`; the row is then incomplete and the table of no use.
    pub(crate) fn push_row<'a, E>(
        &mut self,
        mut value_of: impl FnMut(usize, &str) -> Option<&'a str>,
        mut check: impl FnMut(&str, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        for (position, column) in self.columns.iter_mut().enumerate() {
            let number = match value_of(position, &column.name) {
                Some(text) => column.number_of(text, &mut check)?,
                None => 0,
            };
            self.cells.push(number);
        }
        Ok(())
    }

    /// Names of the columns, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|column| column.name.as_str())
    }

    /// The value of a row in the column of that name.
    pub(crate) fn value(&self, row: usize, name: &str) -> Option<&str> {
        let position = self.names().position(|known| known == name)?;
        self.value_at(row, position)
    }

    /// Names and values of a row, without those that are missing.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = (&str, &str)> {
        let values = self.names().enumerate();
        values.filter_map(move |(position, name)| Some((name, self.value_at(row, position)?)))
    }

    fn value_at(&self, row: usize, position: usize) -> Option<&str> {
        let number = self.cells[row * self.columns.len() + position];
        let index = (number as usize).checked_sub(1)?;
        Some(&self.columns[position].texts[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_keeps_its_own_values() {
        let mut table = LabelTable::new(["age", "gender"].map(str::to_owned));
        let rows = [
            [Some("3"), Some("f")],
            [None, Some("m")],
            [Some("f"), None],
            [Some("3"), Some("m")],
        ];
        for row in rows {
            table
                .push_row(|i, _| row[i], |_, _| Ok::<_, ()>(()))
                .unwrap();
        }
        for (i, [age, gender]) in rows.into_iter().enumerate() {
            assert_eq!(table.value(i, "age"), age);
            assert_eq!(table.value(i, "gender"), gender);
            assert_eq!(table.value(i, "name"), None);
        }
        assert!(table.row(0).eq([("age", "3"), ("gender", "f")]));
        assert!(table.row(1).eq([("gender", "m")]));
        assert_eq!(table.columns[0].texts.len(), 2);
    }

    #[test]
    fn a_value_is_checked_where_it_is_new() {
        let mut table = LabelTable::new(["age".to_owned()]);
        let mut checked = Vec::new();
        for text in ["3", "4", "3"] {
            let check = |name: &str, text: &str| {
                checked.push(format!("{name} {text}"));
                Ok::<_, String>(())
            };
            table.push_row(|_, _| Some(text), check).unwrap();
        }
        assert_eq!(checked, ["age 3", "age 4"]);
        let error = table.push_row(|_, _| Some("x"), |name, text| Err(format!("{name} {text}")));
        assert_eq!(error.unwrap_err(), "age x");
    }
}
