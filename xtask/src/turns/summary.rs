//! Ratios of turns that are pairs and were taken under the same settings.

use anyhow::Context;
use serde_json::Value;

use super::OURS;
use crate::bench_peer::quantile;

/// What turns must have in common, beside their row, to be compared.
const SETTINGS: [&str; 4] = ["threads", "peer_threads", "workers", "machine"];

/// The values of [`SETTINGS`]; null where a line of before has none.
pub(super) fn settings(line: &Value) -> [&Value; SETTINGS.len()] {
    SETTINGS.map(|key| &line[key])
}

/// A row's and a peer's ratios over all pairs of turns under the same settings.
#[derive(Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) row: String,
    pub(crate) peer: String,
    /// What tells it from other turns of the row and the peer; empty if nothing does.
    pub(crate) settings: String,
    /// The peer's seconds by ours, pair by pair.
    pub(crate) speed: Vec<f64>,
    /// Our value by the peer's, the median of the pairs, for each key asked for.
    pub(crate) shares: Vec<Option<f64>>,
}

impl Summary {
    /// Median, lowest and highest of the pairs' ratios, and their number.
    pub(crate) fn speed_text(&self) -> String {
        let [low, middle, high] = [0.0, 0.5, 1.0].map(|at| quantile(&self.speed, at));
        format!(
            "{:22} {middle:5.2} x {} ({low:.2} to {high:.2}, {} pairs{})",
            self.row,
            self.peer,
            self.speed.len(),
            self.settings
        )
    }
}

/// Ratios over all pairs of turns of a raw file.
pub(crate) fn summaries(lines: &[Value], keys: &[&str]) -> anyhow::Result<Vec<Summary>> {
    let mut groups = Vec::new();
    for line in lines {
        let row = line["row"].as_str().context("a line without a row")?;
        let side = line["side"].as_str().context("a line without a side")?;
        let group = (row, side, settings(line));
        if side != OURS && !groups.contains(&group) {
            groups.push(group);
        }
    }
    let mut all = Vec::new();
    for &(row, peer, own) in &groups {
        let of = |side: &str| -> Vec<&Value> {
            let turns = lines
                .iter()
                .filter(|line| line["row"] == row && line["side"] == side && settings(line) == own);
            turns.collect()
        };
        let pairs = pairs(&of(peer), &of(OURS));
        let ratios = |key: &str| -> Vec<f64> {
            let pairs = pairs.iter();
            let values =
                pairs.filter_map(|[peer, ours]| Some(peer[key].as_f64()? / ours[key].as_f64()?));
            values.collect()
        };
        let share = |key: &&str| {
            let ratios = ratios(key);
            (!ratios.is_empty()).then(|| 1.0 / quantile(&ratios, 0.5))
        };
        let differ = |index: &usize| {
            let mut same = groups
                .iter()
                .filter(|group| (group.0, group.1) == (row, peer));
            same.any(|group| group.2[*index] != own[*index])
        };
        let settings = (0..SETTINGS.len()).filter(differ).map(|index| {
            let value = match own[index] {
                Value::Null => "unknown".to_owned(),
                value => value.to_string(),
            };
            format!(", {} {value}", SETTINGS[index])
        });
        let speed = ratios("seconds");
        if !speed.is_empty() {
            all.push(Summary {
                row: row.to_owned(),
                peer: peer.to_owned(),
                settings: settings.collect(),
                speed,
                shares: keys.iter().map(share).collect(),
            });
        }
    }
    Ok(all)
}

/// Turns of a peer, each with ours of the same pair; those that are alone are left out. In files of
/// before turns have no pair: the n-th of a peer goes with the n-th of ours.
fn pairs<'a>(peer: &[&'a Value], ours: &[&'a Value]) -> Vec<[&'a Value; 2]> {
    let mut nameless = ours.iter().filter(|turn| turn["pair"].is_null());
    let pair = |turn: &&'a Value| {
        let partner = match turn["pair"].is_null() {
            true => nameless.next(),
            false => ours.iter().find(|ours| ours["pair"] == turn["pair"]),
        };
        partner.map(|ours| [*turn, *ours])
    };
    peer.iter().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn turns_without_a_pair_are_paired_in_order_and_by_row_and_peer() {
        let turn = |row: &str, side: &str, seconds: f64, mib: f64| json!({"row": row, "side": side, "seconds": seconds, "mib": mib});
        let lines = [
            turn("a", OURS, 1.0, 10.0),
            turn("a", "eager", 2.0, 40.0),
            turn("a", "compiled", 1.5, 20.0),
            turn("a", "eager", 6.0, 40.0),
            turn("a", OURS, 2.0, 10.0),
            turn("b", "eager", 6.0, 40.0),
        ];
        let found = summaries(&lines, &["mib", "unknown"]).unwrap();
        let summary = |peer: &str, speed: &[f64], share: f64| Summary {
            row: "a".to_owned(),
            peer: peer.to_owned(),
            settings: String::new(),
            speed: speed.to_vec(),
            shares: vec![Some(share), None],
        };
        assert_eq!(
            found,
            [
                summary("eager", &[2.0, 3.0], 0.25),
                summary("compiled", &[1.5], 0.5)
            ]
        );
        let text = found[0].speed_text();
        assert!(text.contains("x eager (2.00 to 3.00, 2 pairs)"), "{text}");
    }
    #[test]
    fn a_turn_that_failed_costs_its_own_pair_only() {
        let turn = |side: &str, pair: Option<&str>, seconds: f64| match pair {
            Some(pair) => json!({"row": "a", "side": side, "pair": pair, "seconds": seconds}),
            None => json!({"row": "a", "side": side, "seconds": seconds}),
        };
        let lines = [
            turn(OURS, None, 1.0),
            turn(OURS, Some("7-0"), 1.0),
            turn("eager", Some("7-0"), 2.0),
            // Of the second pair the peer failed, of the third we did.
            turn(OURS, Some("7-1"), 10.0),
            turn("eager", Some("7-2"), 300.0),
            turn("eager", Some("7-3"), 3.0),
            turn(OURS, Some("7-3"), 1.0),
            // Another start of the command.
            turn("eager", Some("8-1"), 5.0),
            turn(OURS, Some("8-1"), 1.0),
            turn("eager", None, 7.0),
        ];
        let found = summaries(&lines, &[]).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].speed, [2.0, 3.0, 5.0, 7.0]);
    }

    #[test]
    fn a_key_that_a_turn_lacks_leaves_its_pair_out() {
        let lines = [
            json!({"row": "a", "side": OURS, "seconds": 1.0}),
            json!({"row": "a", "side": "eager", "seconds": 1.0, "mib": 9.0}),
            json!({"row": "a", "side": OURS, "seconds": 1.0, "mib": 5.0}),
            json!({"row": "a", "side": "eager", "seconds": 1.0, "mib": 10.0}),
        ];
        let found = summaries(&lines, &["mib"]).unwrap();
        assert_eq!(found[0].shares, [Some(0.5)]);
    }

    #[test]
    fn turns_under_other_settings_are_not_compared() {
        let both = |settings: Value, ours: f64, peer: f64| {
            [(OURS, ours), ("eager", peer)].map(|(side, seconds)| {
                let mut line = settings.clone();
                line["row"] = "a".into();
                line["side"] = side.into();
                line["seconds"] = seconds.into();
                line
            })
        };
        let usual = json!({"threads": 2, "peer_threads": 2, "workers": 2, "machine": "m"});
        let mut all = [&usual; 6].map(Clone::clone);
        all[1]["threads"] = 1.into();
        all[2]["peer_threads"] = 1.into();
        all[3]["workers"] = 1.into();
        all[4]["machine"] = "n".into();
        // As files of before have it.
        all[5].as_object_mut().unwrap().remove("peer_threads");
        let mut lines = Vec::new();
        for (index, settings) in all.iter().enumerate() {
            lines.extend(both(settings.clone(), 1.0, 2.0 + index as f64));
        }
        // One side only: there is nothing to compare it with.
        lines.push(json!({"row": "a", "side": "eager", "seconds": 9.0, "threads": 9}));
        let found = summaries(&lines, &[]).unwrap();
        let speeds: Vec<&[f64]> = found.iter().map(|summary| &summary.speed[..]).collect();
        assert_eq!(speeds, [[2.0], [3.0], [4.0], [5.0], [6.0], [7.0]]);
        let text = found[2].speed_text();
        assert!(found[5].speed_text().contains("peer_threads unknown"));
        let differing = ", threads 2, peer_threads 1, workers 2, machine \"m\")";
        assert!(text.ends_with(differing), "{text}");
    }
}
