//! How many steps in a row were left out.

use serde_json::Value;

use crate::config::NonFinite;

/// Steps that were left out one after the other because something in them was not finite.
#[derive(Debug, Default)]
pub(crate) struct SkipsInARow(u64);

impl SkipsInARow {
    /// A network that gives nothing finite any more will not recover.
    const MOST: u64 = 3;
    /// Where a checkpoint keeps the count, if there is something to count.
    const KEY: &str = "skipped_in_a_row";

    /// As a checkpoint kept it.
    pub(crate) fn of(extra: &Value) -> Self {
        Self(extra[Self::KEY].as_u64().unwrap_or(0))
    }

    pub(super) fn keep_in(&self, extra: &mut Value) {
        if !self.are_none() {
            extra[Self::KEY] = self.0.into();
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.0
    }

    pub(super) fn are_none(&self) -> bool {
        self.0 == 0
    }

    pub(super) fn end(&mut self) {
        self.0 = 0;
    }

    /// Counts one more, if the policy lets it be left out.
    pub(super) fn allow_another(&mut self, policy: NonFinite) -> bool {
        let allowed = policy == NonFinite::Skip && self.0 < Self::MOST;
        self.0 += u64::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_steps_in_a_row_may_be_left_out_and_only_if_asked_for() {
        let mut skips = SkipsInARow::default();
        assert!(!skips.allow_another(NonFinite::Stop) && skips.are_none());
        for round in 0..2 {
            for _ in 0..3 {
                assert!(skips.allow_another(NonFinite::Skip), "round {round}");
            }
            assert!(!skips.allow_another(NonFinite::Skip), "round {round}");
            skips.end();
        }
    }
}
