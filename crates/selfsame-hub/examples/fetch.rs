//! Fetches a model's configuration and weights:
//! `cargo run -p selfsame-hub --example fetch -- ORG/NAME [FOLDER]`

#![expect(clippy::print_stdout, reason = "the folder is the result")]

use std::path::PathBuf;

use selfsame_hub::{Hub, HubConfig, RepoId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let repo: RepoId = args.next().ok_or("name a repository")?.parse()?;
    let cache = args
        .next()
        .map_or_else(|| PathBuf::from("hub"), PathBuf::from);
    let hub = Hub::new(HubConfig {
        cache,
        ..HubConfig::default()
    })?;
    let mut last = (String::new(), 0);
    let weights = hub.fetch_weights(&repo, &mut |now| {
        let percent = 100 * now.done / now.total.unwrap_or(now.done).max(1);
        if (now.file, percent) != (last.0.as_str(), last.1) {
            eprintln!("{}: {percent} %", now.file);
            last = (now.file.to_owned(), percent);
        }
    })?;
    println!("{} (commit {})", weights.folder.display(), weights.commit);
    Ok(())
}
