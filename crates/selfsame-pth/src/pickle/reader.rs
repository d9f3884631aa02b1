//! The pickle's bytes, taken from the front.

/// What is left of the pickle.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pub(super) offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.offset.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.offset..end));
        let taken = taken.ok_or_else(|| "it ends in mid-sentence".to_owned())?;
        self.offset += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A length of eight bytes.
    pub(super) fn long_len(&mut self) -> Result<usize, String> {
        let len = u64::from_le_bytes(self.array()?);
        usize::try_from(len).map_err(|_| "a length does not fit the machine".to_owned())
    }

    /// A line without its end, as the text opcodes have it.
    pub(super) fn line(&mut self) -> Result<&'a str, String> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let len = rest.iter().position(|byte| *byte == b'\n');
        let len = len.ok_or_else(|| "a line has no end".to_owned())?;
        let line = self.take(len)?;
        self.take(1)?;
        text(line)
    }
}

/// UTF-8, which every name in a pickle is.
pub(super) fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8".to_owned())
}
