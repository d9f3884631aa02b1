/// What a file may make the reader hold. The defaults are far above any published checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length in bytes of `data.pkl`, which describes the tensors but does not hold them.
    pub max_pickle_bytes: u64,
    /// Objects that the pickle makes, and entries of its memo.
    pub max_objects: usize,
    /// Dictionaries inside dictionaries.
    pub max_depth: usize,
    /// Total bytes of all tensors read in one call, as a multiple of the file's length.
    ///
    /// 1 is enough for every file whose tensors do not overlap. Tied weights and expanded tensors
    /// lie in the file once and are read once for each name and repetition.
    pub max_expansion: u64,
    /// By how many bytes the tensors may at most be larger than the file, however large that is.
    pub max_repeated_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_pickle_bytes: 16 << 20,
            max_objects: 500_000,
            max_depth: 64,
            max_expansion: 16,
            max_repeated_bytes: 2 << 30,
        }
    }
}
