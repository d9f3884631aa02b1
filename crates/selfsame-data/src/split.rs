//! Train and test sides of a list of images, at random or with each person on one side.

use std::collections::BTreeMap;

use crate::error::DataError;
use crate::rng::{Purpose, Stream};

/// A side of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Learned from.
    Train,
    /// Measured on.
    Test,
}

/// Most work (people × images) that is spent on the exact search.
const MAX_EXACT_WORK: usize = 400_000_000;

/// `round(train_fraction · n)` random items go to the train side.
///
/// The result depends on the order of the items: sort them first.
///
/// # Errors
/// [`DataError::Setting`] if the fraction is not within 0 and 1.
pub fn random(n: usize, train_fraction: f64, seed: u64) -> Result<Vec<Side>, DataError> {
    let target = target(n, train_fraction)?;
    let mut order: Vec<usize> = (0..n).collect();
    Stream::new(Purpose::Split, [seed, 0, 0]).shuffle(&mut order);
    let mut sides = vec![Side::Test; n];
    for &item in &order[..target] {
        sides[item] = Side::Train;
    }
    Ok(sides)
}

/// All items of an identity go to the same side; the train side gets as near to
/// `train_fraction · n` items as random filling gets, and at least within 1 % of n where the
/// identities allow it and there are not more than 4 · 10⁸ pairs of an identity and an item, for
/// which no exact search is made.
///
/// # Errors
/// [`DataError::Setting`] if the fraction is not within 0 and 1.
pub fn by_identity(
    identities: &[&str],
    train_fraction: f64,
    seed: u64,
) -> Result<Vec<Side>, DataError> {
    let target = target(identities.len(), train_fraction)?;
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for identity in identities {
        *sizes.entry(identity).or_insert(0) += 1;
    }
    let mut groups: Vec<(&str, usize)> = sizes.into_iter().collect();
    Stream::new(Purpose::Split, [seed, 1, 0]).shuffle(&mut groups);

    let group_sizes: Vec<usize> = groups.iter().map(|&(_, size)| size).collect();
    let mut in_train = fill(&group_sizes, target);
    let filled: usize = sum_of(&group_sizes, &in_train);
    let missing = (target - filled) * 100 > identities.len();
    if missing && group_sizes.len() * identities.len() <= MAX_EXACT_WORK {
        in_train = nearest_sum(&group_sizes, target);
    }
    let train: BTreeMap<&str, bool> = groups
        .iter()
        .zip(in_train)
        .map(|(&(identity, _), train)| (identity, train))
        .collect();
    Ok(identities
        .iter()
        .map(|identity| {
            if train[identity] {
                Side::Train
            } else {
                Side::Test
            }
        })
        .collect())
}

fn target(n: usize, train_fraction: f64) -> Result<usize, DataError> {
    if !(0.0..=1.0).contains(&train_fraction) {
        return Err(DataError::Setting(format!(
            "a train fraction of {train_fraction} is not within 0 and 1"
        )));
    }
    Ok(((train_fraction * n as f64).round() as usize).min(n))
}

fn sum_of(sizes: &[usize], taken: &[bool]) -> usize {
    sizes
        .iter()
        .zip(taken)
        .filter(|&(_, &taken)| taken)
        .map(|(size, _)| size)
        .sum()
}

/// Takes each group in turn that still fits.
fn fill(sizes: &[usize], target: usize) -> Vec<bool> {
    let mut left = target;
    sizes
        .iter()
        .map(|&size| {
            let fits = size <= left;
            if fits {
                left -= size;
            }
            fits
        })
        .collect()
}

/// The groups whose sizes sum up nearest to the target (the smaller sum of two as near).
///
/// Subset sum by dynamic programming: `reached_by[s]` is the group that first made the sum s.
fn nearest_sum(sizes: &[usize], target: usize) -> Vec<bool> {
    const UNREACHED: usize = usize::MAX;
    let total: usize = sizes.iter().sum();
    let mut reached_by = vec![UNREACHED; total + 1];
    // The sum 0 needs no group; any value but UNREACHED will do.
    reached_by[0] = 0;
    let mut largest = 0;
    for (group, &size) in sizes.iter().enumerate() {
        for sum in (0..=largest).rev() {
            if reached_by[sum] != UNREACHED && reached_by[sum + size] == UNREACHED {
                reached_by[sum + size] = group;
            }
        }
        largest += size;
    }
    let mut sum = (0..=total)
        .filter(|&sum| reached_by[sum] != UNREACHED)
        .min_by_key(|&sum| (sum.abs_diff(target), sum))
        .expect("the empty sum is always reached");
    let mut taken = vec![false; sizes.len()];
    while sum > 0 {
        let group = reached_by[sum];
        taken[group] = true;
        sum -= sizes[group];
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train_count(sides: &[Side]) -> usize {
        sides.iter().filter(|&&side| side == Side::Train).count()
    }

    #[test]
    fn random_gives_exactly_the_rounded_share() {
        for (n, share) in [
            (10, 8),
            (11, 9),
            (12, 10),
            (13, 10),
            (1, 1),
            (2, 2),
            (3, 2),
            (0, 0),
        ] {
            assert_eq!(train_count(&random(n, 0.8, 3).unwrap()), share, "n = {n}");
        }
        assert_ne!(random(100, 0.5, 1).unwrap(), random(100, 0.5, 2).unwrap());
        assert_eq!(random(100, 0.5, 1).unwrap(), random(100, 0.5, 1).unwrap());
        assert!(random(10, 1.2, 0).unwrap_err().is_usage());
        assert!(random(10, f64::NAN, 0).is_err());
    }

    #[test]
    fn no_person_is_on_both_sides_and_the_share_is_within_one_percent() {
        // 60 people with 1 to 30 pictures each, interleaved.
        let names: Vec<String> = (0..60)
            .flat_map(|p| (0..1 + p % 30).map(move |_| format!("p{p}")))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for seed in 0..20 {
            let sides = by_identity(&names, 0.8, seed).unwrap();
            let mut of_person = BTreeMap::new();
            for (name, side) in names.iter().zip(&sides) {
                assert_eq!(of_person.entry(name).or_insert(side), &side);
            }
            let off = (train_count(&sides) as f64 - 0.8 * names.len() as f64).abs();
            assert!(
                off <= 0.01 * names.len() as f64,
                "seed {seed}: off by {off}"
            );
        }
    }

    #[test]
    fn few_large_people_are_searched_for_the_nearest_sum() {
        // 40 + 40 = 80 of 100 is there, but filling in the order of sizes 50, 40, 40 … misses it.
        let mut names = Vec::new();
        for (person, pictures) in [("a", 7), ("b", 40), ("c", 13), ("d", 40)] {
            names.extend(std::iter::repeat_n(person, pictures));
        }
        for seed in 0..10 {
            let sides = by_identity(&names, 0.8, seed).unwrap();
            assert_eq!(train_count(&sides), 80, "seed {seed}");
        }
    }

    #[test]
    fn one_person_alone_is_learned_from() {
        assert_eq!(train_count(&by_identity(&["a"; 10], 0.8, 0).unwrap()), 10);
        assert!(by_identity(&[], 0.8, 0).unwrap().is_empty());
    }

    #[test]
    fn nearest_sum_takes_each_group_at_most_once() {
        for target in 0..30 {
            let sizes = [3, 3, 5, 9];
            let sum = sum_of(&sizes, &nearest_sum(&sizes, target));
            let best = (0..16u32)
                .map(|mask| {
                    (0..4)
                        .filter(|i| mask >> i & 1 == 1)
                        .map(|i| sizes[i])
                        .sum::<usize>()
                })
                .map(|sum| sum.abs_diff(target))
                .min();
            assert_eq!(Some(sum.abs_diff(target)), best, "target {target}");
        }
    }
}
