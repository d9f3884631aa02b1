//! `cargo xtask ci`.

pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}
