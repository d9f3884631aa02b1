//! `cargo xtask tidy`.

pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}
