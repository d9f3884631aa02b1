//! Fetching from a hub on this machine that does what hubs and networks do.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;
#[path = "local_server/dropped.rs"]
mod dropped;
#[path = "local_server/kept.rs"]
mod kept;
#[path = "local_server/names.rs"]
mod names;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Asked, Reply, Server};
use selfsame_hub::{Fetched, Hub, HubConfig, HubError, RepoId};
use sha1::Digest;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CONFIG: &[u8] = b"{\"model_type\": \"vit\"}\n";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn git_blob(bytes: &[u8]) -> String {
    let mut all = format!("blob {}\0", bytes.len()).into_bytes();
    all.extend(bytes);
    hex(&sha1::Sha1::digest(all))
}

/// Bytes of a large file.
fn weights() -> Vec<u8> {
    (0..300_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// A whole file or the rest of it, as a server that knows ranges answers.
fn part(bytes: &[u8], from: usize) -> Reply {
    let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
    Reply {
        status: if from == 0 { 200 } else { 206 },
        headers: match from {
            0 => vec![],
            _ => vec![("content-range", range)],
        },
        body: bytes[from..].to_vec(),
        ..Reply::default()
    }
}

fn small(bytes: &[u8]) -> Reply {
    Reply {
        status: 200,
        headers: vec![
            ("etag", format!("\"{}\"", git_blob(bytes))),
            ("x-repo-commit", COMMIT.to_owned()),
        ],
        body: bytes.to_vec(),
        ..Reply::default()
    }
}

fn missing() -> Reply {
    Reply {
        status: 404,
        headers: vec![("x-error-code", "EntryNotFound".to_owned())],
        body: b"Entry not found".to_vec(),
        ..Reply::default()
    }
}

/// A redirect to where large files lie, with what the hub tells of it.
fn linked(to: &str, bytes: &[u8]) -> Reply {
    Reply {
        status: 302,
        headers: vec![
            ("location", to.to_owned()),
            ("etag", "\"of-no-meaning\"".to_owned()),
            ("x-linked-etag", format!("\"{}\"", sha256(bytes))),
            ("x-linked-size", bytes.len().to_string()),
            ("x-repo-commit", COMMIT.to_owned()),
        ],
        ..Reply::default()
    }
}

/// A hub without redirects that serves one large file by `get`.
fn large(get: impl Fn(&Asked) -> Reply + Send + 'static) -> Server {
    Server::start(move |asked| match asked.method.as_str() {
        "HEAD" => Reply {
            status: 200,
            ..linked("", &weights())
        },
        _ => get(asked),
    })
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub::new(HubConfig {
        endpoint: server.address.clone(),
        cache: cache.to_owned(),
        retries: 2,
        retry_pause: Duration::ZERO,
        ..HubConfig::default()
    })
    .unwrap()
}

fn repo() -> RepoId {
    "org/net".parse().unwrap()
}

fn fetch(server: &Server, cache: &Path, file: &str) -> Result<Fetched, HubError> {
    hub(server, cache).fetch(&repo(), file, &mut |_| ())
}

/// Files of the cache that are no lock, relative, sorted.
fn files(cache: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![cache.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(
                    path.strip_prefix(cache)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .replace('\\', "/"),
                ),
            }
        }
    }
    found.retain(|name| !name.starts_with(".locks"));
    found.sort();
    found
}

#[test]
fn a_whole_model_comes_from_the_hub_and_another_host_and_then_from_the_cache() {
    let cdn = Server::start(|asked| {
        assert_eq!(asked.path, "/blob?signature=secret");
        part(&weights(), asked.from())
    });
    let to = format!("{}/blob?signature=secret", cdn.address);
    let server = Server::start(move |asked| match asked.path.rsplit('/').next().unwrap() {
        "config.json" => small(CONFIG),
        "model.safetensors" => linked(&to, &weights()),
        _ => missing(),
    });
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(HubConfig {
        token: Some("hf_secret".to_owned()),
        endpoint: server.address.clone(),
        cache: dir.path().to_owned(),
        ..HubConfig::default()
    })
    .unwrap();
    let mut seen = Vec::new();
    let fetched = hub
        .fetch_weights(&repo(), &mut |now| {
            assert!(Some(now.done) <= now.total);
            seen.push((now.file.to_owned(), now.done));
        })
        .unwrap();
    assert_eq!(fetched.commit, COMMIT);
    assert!(!fetched.unasked);
    let read = |name: &str| std::fs::read(fetched.folder.join(name)).unwrap();
    assert_eq!(read("config.json"), CONFIG);
    assert_eq!(read("model.safetensors"), weights());
    assert_eq!(
        seen.first().unwrap(),
        &("config.json".to_owned(), CONFIG.len() as u64)
    );
    assert_eq!(
        seen.last().unwrap(),
        &("model.safetensors".to_owned(), 300_000)
    );
    // As huggingface_hub lays it out.
    let (config, model) = (git_blob(CONFIG), sha256(&weights()));
    let mut expected = vec![
        format!("models--org--net/blobs/{config}"),
        format!("models--org--net/blobs/{model}"),
        "models--org--net/refs/main".to_owned(),
        format!("models--org--net/snapshots/{COMMIT}/config.json"),
        format!("models--org--net/snapshots/{COMMIT}/model.safetensors"),
    ];
    expected.sort();
    assert_eq!(files(dir.path()), expected);

    // All files after the first are of its commit; the token goes to the hub alone.
    let asked = server.asked();
    assert!(
        asked
            .iter()
            .all(|a| a.headers["authorization"] == "Bearer hf_secret")
    );
    let paths: Vec<&str> = asked.iter().map(|a| a.path.as_str()).collect();
    assert_eq!(paths[0], "/org/net/resolve/main/config.json");
    assert!(paths.contains(&format!("/org/net/resolve/{COMMIT}/model.safetensors").as_str()));
    let elsewhere = cdn.asked();
    assert!(
        !elsewhere.is_empty()
            && elsewhere
                .iter()
                .all(|a| !a.headers.contains_key("authorization"))
    );

    // A second time only heads are asked for.
    let before = (server.asked().len(), cdn.asked().len());
    assert_eq!(hub.fetch_weights(&repo(), &mut |_| ()).unwrap(), fetched);
    assert!(
        server.asked()[before.0..]
            .iter()
            .all(|a| a.method == "HEAD")
    );
    assert!(server.asked().len() > before.0);
    assert_eq!(cdn.asked().len(), before.1);
}

#[test]
fn a_broken_transfer_goes_on_where_it_was() {
    let server = large(|asked| Reply {
        cut_after: (asked.from() < 200_000).then_some(100_000),
        ..part(&weights(), asked.from())
    });
    let dir = tempfile::tempdir().unwrap();
    let fetched = fetch(&server, dir.path(), "model.safetensors").unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), weights());
    let asked = server.asked();
    let from: Vec<usize> = asked
        .iter()
        .filter(|a| a.method == "GET")
        .map(Asked::from)
        .collect();
    assert_eq!(from, [0, 100_000, 200_000]);
}

#[test]
fn what_an_earlier_program_left_is_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let gone = large(|asked| match asked.from() {
        0 => Reply {
            cut_after: Some(120_000),
            ..part(&weights(), 0)
        },
        _ => Reply {
            status: 503,
            ..Reply::default()
        },
    });
    let error = fetch(&gone, dir.path(), "model.safetensors").unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HubError::Transfer { .. }), "{text}");
    assert!(text.contains("503") && text.contains("is kept"), "{text}");

    let server = large(|asked| part(&weights(), asked.from()));
    let fetched = fetch(&server, dir.path(), "model.safetensors").unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), weights());
    assert_eq!(server.asked().last().unwrap().from(), 120_000);
}

#[test]
fn a_server_that_ignores_ranges_starts_again() {
    let count = AtomicUsize::new(0);
    let server = large(move |_| Reply {
        cut_after: (count.fetch_add(1, Ordering::Relaxed) == 0).then_some(50_000),
        ..part(&weights(), 0)
    });
    let dir = tempfile::tempdir().unwrap();
    let fetched = fetch(&server, dir.path(), "model.safetensors").unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), weights());
    assert_eq!(
        server.asked().last().unwrap().from(),
        50_000,
        "it was asked for the rest"
    );
}

#[test]
fn a_partial_file_that_is_too_long_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("models--org--net/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", sha256(&weights())));
    std::fs::write(&partial, vec![7; 300_001]).unwrap();
    let server = large(|asked| part(&weights(), asked.from()));
    let fetched = fetch(&server, dir.path(), "model.safetensors").unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), weights());
}

#[test]
fn wrong_bytes_are_refused_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let server = large(|asked| {
        let mut bytes = weights();
        bytes[123_456] ^= 1;
        part(&bytes, asked.from())
    });
    let error = fetch(&server, dir.path(), "model.safetensors").unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HubError::Checksum { .. }), "{text}");
    assert!(
        text.contains("SHA-256") && text.contains(&sha256(&weights())),
        "{text}"
    );
    assert_eq!(
        files(dir.path()),
        Vec::<String>::new(),
        "nothing is left of it"
    );

    let server = Server::start(|asked| match asked.method.as_str() {
        "HEAD" => small(CONFIG),
        _ => small(b"{\"model_type\": \"vat\"}\n"),
    });
    let error = fetch(&server, dir.path(), "config.json").unwrap_err();
    assert!(error.to_string().contains("git SHA-1"), "{error}");
    assert_eq!(files(dir.path()), Vec::<String>::new());
}

#[test]
fn a_damaged_file_of_the_cache_is_fetched_anew() {
    let dir = tempfile::tempdir().unwrap();
    let server = large(|asked| part(&weights(), asked.from()));
    let fetched = fetch(&server, dir.path(), "model.safetensors").unwrap();
    let blob = std::fs::canonicalize(&fetched.path).unwrap();
    let mut one_bit = weights();
    one_bit[123_456] ^= 1;
    for damaged in [&b"damaged"[..], &one_bit] {
        std::fs::write(&blob, damaged).unwrap();
        let again = fetch(&server, dir.path(), "model.safetensors").unwrap();
        assert_eq!(std::fs::read(again.path).unwrap(), weights());
    }
}

#[test]
fn a_commit_that_is_no_hash_does_not_name_a_folder() {
    let outer = tempfile::tempdir().unwrap();
    let absolute = outer.path().join("x").display().to_string();
    for commit in ["../../x", &absolute, "..", "", "x"] {
        let told = commit.to_owned();
        let server = Server::start(move |_| {
            let mut reply = small(CONFIG);
            reply.headers[1].1 = told.clone();
            reply
        });
        let cache = outer.path().join("a/b/cache");
        let fetched = fetch(&server, &cache, "config.json").unwrap();
        assert_eq!(fetched.commit, "main", "{commit:?}");
        let blob = format!("a/b/cache/models--org--net/blobs/{}", git_blob(CONFIG));
        let file = "a/b/cache/models--org--net/snapshots/main/config.json".to_owned();
        let found = files(outer.path());
        let found: Vec<&String> = found.iter().filter(|f| !f.ends_with(".lock")).collect();
        assert_eq!(found, [&blob, &file], "{commit:?}");
        std::fs::remove_dir_all(&cache).unwrap();
    }
}

#[test]
fn more_than_was_told_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = large(|_| {
        let mut bytes = weights();
        bytes.push(0);
        part(&bytes, 0)
    });
    let error = fetch(&server, dir.path(), "model.safetensors").unwrap_err();
    assert!(
        matches!(error, HubError::TooLong { limit: 300_000, .. }),
        "{error}"
    );
    assert_eq!(files(dir.path()), Vec::<String>::new());
}

#[test]
fn what_is_not_there_and_what_is_not_for_everybody_is_said_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let error = fetch(&Server::start(|_| missing()), dir.path(), "config.json").unwrap_err();
    assert_eq!(
        error.to_string(),
        "org/net has no config.json (EntryNotFound)"
    );
    assert!(error.is_usage());
    for status in [401, 403] {
        let server = Server::start(move |_| Reply {
            status,
            ..missing()
        });
        let error = fetch(&server, dir.path(), "config.json").unwrap_err();
        assert!(matches!(error, HubError::NotFound { .. }), "{error}");

        let server = Server::start(move |_| Reply {
            status,
            ..Reply::default()
        });
        let error = fetch(&server, dir.path(), "config.json").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("gated") && text.contains(&status.to_string()),
            "{text}"
        );
        assert!(error.is_usage());
    }
    let server = Server::start(|_| Reply {
        status: 410,
        ..Reply::default()
    });
    let error = fetch(&server, dir.path(), "config.json").unwrap_err();
    assert!(
        matches!(error, HubError::Status { status: 410, .. }),
        "{error}"
    );
    assert!(!error.is_usage());

    let server = Server::start(|_| Reply {
        status: 200,
        body: CONFIG.to_vec(),
        ..Reply::default()
    });
    let error = fetch(&server, dir.path(), "config.json").unwrap_err();
    assert!(matches!(error, HubError::NoChecksum { .. }), "{error}");
}

#[test]
fn a_repository_with_pickled_weights_only_gives_those() {
    let server = Server::start(|asked| match asked.path.rsplit('/').next().unwrap() {
        "config.json" => small(CONFIG),
        "pytorch_model.bin" => small(b"weights"),
        _ => missing(),
    });
    let dir = tempfile::tempdir().unwrap();
    let fetched = hub(&server, dir.path())
        .fetch_weights(&repo(), &mut |_| ())
        .unwrap();
    assert_eq!(
        std::fs::read(fetched.folder.join("pytorch_model.bin")).unwrap(),
        b"weights"
    );
    assert_eq!(fetched.weights, fetched.folder.join("pytorch_model.bin"));

    let server = Server::start(|asked| match asked.path.ends_with("config.json") {
        true => small(CONFIG),
        false => missing(),
    });
    let error = hub(&server, dir.path())
        .fetch_weights(&repo(), &mut |_| ())
        .unwrap_err();
    let neither = "has no model.safetensors or pytorch_model.bin (EntryNotFound)";
    assert!(error.to_string().contains(neither), "{error}");
}

#[test]
fn an_earlier_copy_is_taken_when_the_hub_is_gone_or_not_to_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| small(CONFIG));
    let first = fetch(&server, dir.path(), "config.json").unwrap();
    let ask = |offline: bool| {
        Hub::new(HubConfig {
            endpoint: "http://127.0.0.1:1".to_owned(), // where nobody listens
            cache: dir.path().to_owned(),
            offline,
            retries: 1,
            retry_pause: Duration::ZERO,
            ..HubConfig::default()
        })
        .unwrap()
    };
    for offline in [true, false] {
        let again = ask(offline)
            .fetch(&repo(), "config.json", &mut |_| ())
            .unwrap();
        assert_eq!((again.path, again.unasked), (first.path.clone(), true));
        let error = ask(offline)
            .fetch(&repo(), "other.json", &mut |_| ())
            .unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, HubError::NotCached { .. }), "{text}");
        assert!(
            text.contains(if offline {
                "not to be asked"
            } else {
                "cannot be reached"
            }),
            "{text}"
        );
    }
}

#[test]
fn a_renamed_repository_is_followed_and_a_circle_is_not() {
    let server = Server::start(|asked| match asked.path.strip_prefix("/org/net/") {
        Some(rest) => Reply {
            status: 307,
            headers: vec![("location", format!("/new/name/{rest}"))],
            ..Reply::default()
        },
        None => small(CONFIG),
    });
    let dir = tempfile::tempdir().unwrap();
    let fetched = fetch(&server, dir.path(), "config.json").unwrap();
    assert_eq!(std::fs::read(fetched.path).unwrap(), CONFIG);

    let circle = Server::start(|asked| Reply {
        status: 302,
        headers: vec![("location", asked.path.clone())],
        ..Reply::default()
    });
    let error = fetch(&circle, dir.path(), "other.json").unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
}

#[test]
fn two_programs_at_once_fetch_a_file_once() {
    let server = large(|asked| part(&weights(), asked.from()));
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| fetch(&server, dir.path(), "model.safetensors")));
        for one in both {
            assert_eq!(
                std::fs::read(one.join().unwrap().unwrap().path).unwrap(),
                weights()
            );
        }
    });
    let gets = server.asked().iter().filter(|a| a.method == "GET").count();
    assert_eq!(gets, 1);
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    for (endpoint, proxy) in [
        ("ftp://a", None),
        ("no address", None),
        ("http://a", Some("::::")),
        ("ftp://me:secret@a", None),
        ("https://me:secret@a b", None),
        ("http://a", Some("http://me:secret@a b:::")),
    ] {
        let made = Hub::new(HubConfig {
            endpoint: endpoint.to_owned(),
            proxy: proxy.map(str::to_owned),
            cache: "cache".into(),
            ..HubConfig::default()
        });
        let error = made.err().unwrap();
        assert!(matches!(error, HubError::Setting { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let server = Server::start(|asked| Reply {
        status: [410, 200][usize::from(asked.path.ends_with("unhashed"))],
        ..Reply::default()
    });
    let dir = tempfile::tempdir().unwrap();
    let with_password = server.address.replace("http://", "http://me:secret@");
    for endpoint in [with_password.as_str(), "http://me:secret@127.0.0.1:1"] {
        let hub = Hub::new(HubConfig {
            endpoint: endpoint.to_owned(),
            cache: dir.path().to_owned(),
            retries: 0,
            ..HubConfig::default()
        })
        .unwrap();
        for file in ["gone", "unhashed"] {
            let error = hub.fetch(&repo(), file, &mut |_| ()).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(!format!("{hub:?}").contains("secret"));
    }
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("roots.pem");
    std::fs::write(&pem, "no certificate").unwrap();
    let made = Hub::new(HubConfig {
        certificates: Some(pem),
        cache: "cache".into(),
        ..HubConfig::default()
    });
    assert!(made.err().unwrap().to_string().contains("holds none"));
    let error = Hub::new(HubConfig::default()).err().unwrap();
    assert!(matches!(error, HubError::Setting { .. }), "{error}");
    assert_eq!(error.to_string(), "cache: no folder given to keep files in");
}
