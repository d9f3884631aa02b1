//! Transfers that break off again and again: what counts as progress, and what is kept.

use super::*;

/// Bytes of the file that is not yet whole.
fn kept(cache: &Path) -> Vec<u8> {
    let name = format!("{}.incomplete", sha256(&weights()));
    std::fs::read(cache.join("models--org--net/blobs").join(name)).unwrap()
}

fn gets(server: &Server) -> usize {
    server.asked().iter().filter(|a| a.method == "GET").count()
}

#[test]
fn bytes_that_come_again_are_no_progress() {
    let server = large(|asked| match asked.from() {
        0 => Reply {
            cut_after: Some(50_000),
            ..part(&weights(), 0)
        },
        _ => Reply {
            status: 416,
            ..Reply::default()
        },
    });
    let dir = tempfile::tempdir().unwrap();
    let error = fetch(&server, dir.path(), "model.safetensors").unwrap_err();
    assert!(matches!(error, HubError::Transfer { .. }), "{error}");
    // The first, and three tries of which each asks for the rest and then for all of it.
    assert_eq!(gets(&server), 7);
    assert_eq!(kept(dir.path()), weights()[..50_000]);
}

#[test]
fn a_server_without_ranges_that_breaks_off_earlier_takes_nothing_away() {
    let count = AtomicUsize::new(0);
    let server = large(move |_| Reply {
        cut_after: Some(match count.fetch_add(1, Ordering::Relaxed) {
            0 => 50_000,
            odd if odd % 2 == 1 => 20_000,
            _ => 40_000,
        }),
        ..part(&weights(), 0)
    });
    let dir = tempfile::tempdir().unwrap();
    let error = fetch(&server, dir.path(), "model.safetensors").unwrap_err();
    assert!(matches!(error, HubError::Transfer { .. }), "{error}");
    assert_eq!(gets(&server), 4);
    assert_eq!(kept(dir.path()), weights()[..50_000]);
}

#[test]
fn a_file_without_a_told_size_ends_where_the_server_ends_it() {
    let server = Server::start(|asked| match (asked.method.as_str(), asked.from()) {
        ("HEAD", _) => {
            let mut reply = linked("https://elsewhere.example/blob", &weights());
            reply.headers.retain(|(name, _)| *name != "x-linked-size");
            reply
        }
        (_, 0) => part(&weights(), 0),
        _ => Reply {
            status: 416,
            ..Reply::default()
        },
    });
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("models--org--net/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", sha256(&weights())));
    std::fs::write(&partial, vec![7; 300_001]).unwrap();
    let fetched = fetch(&server, dir.path(), "model.safetensors").unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), weights());
}
