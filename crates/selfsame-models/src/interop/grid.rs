//! What position embeddings belong to, told from their number.

/// The parts of a ViT's position embeddings: of the class token, of registers if timm gave them
/// some, and of a square grid of patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Positions {
    /// Registers that have a position.
    pub(super) registers: usize,
    /// Patches on a side of the grid.
    pub(super) side: usize,
}

/// The parts of `tokens` position embeddings of a network with so many registers; `None` if what is
/// left for the patches is no square.
///
/// Where both ways leave a square, registers have positions only if the patches are then those of
/// `native`, the side that the network has if it is known.
pub(super) fn positions(
    tokens: usize,
    registers: usize,
    native: Option<usize>,
) -> Option<Positions> {
    let with = |registers: usize| {
        let patches = tokens.checked_sub(1 + registers)?;
        let side = patches.isqrt();
        (side > 0 && side * side == patches).then_some(Positions { registers, side })
    };
    let (plain, own) = (with(0), with(registers));
    let is_native = own.is_some_and(|own| Some(own.side) == native);
    if is_native { own } else { plain.or(own) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_positions_where_nothing_else_is_a_square() {
        let found = |tokens, registers, native| {
            positions(tokens, registers, native).map(|found| (found.registers, found.side))
        };
        assert_eq!(found(17, 0, None), Some((0, 4)));
        assert_eq!(found(17, 4, None), Some((0, 4)));
        assert_eq!(found(21, 4, None), Some((4, 4)));
        assert_eq!(found(1, 0, None), None);
        assert_eq!(found(16, 4, None), None);
        // 1 + 36, or 1 + 11 + 25.
        assert_eq!(found(37, 11, None), Some((0, 6)));
        assert_eq!(found(37, 11, Some(5)), Some((11, 5)));
        assert_eq!(found(37, 11, Some(6)), Some((0, 6)));
    }
}
