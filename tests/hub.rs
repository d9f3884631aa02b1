//! Weights by the name of a hub's repository: refused in words, or, in builds with the feature
//! `hub`, fetched from a hub on this machine.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

#[cfg(not(feature = "hub"))]
#[test]
fn a_build_without_the_hub_says_what_to_build() {
    let dir = common::scratch("hub-without");
    let out = common::text(&dir.join("f.npy"));
    let data = "synthetic:portraits?count=40&seed=0";
    let run = common::text(&dir.join("run"));
    for args in [
        vec![
            "embed",
            "--weights",
            "hf:org/net",
            "--data",
            data,
            "--out",
            &out,
        ],
        vec![
            "train",
            "--init",
            "hf:org/net",
            "--data",
            data,
            "--run",
            &run,
        ],
    ] {
        let answer = common::selfsame(&args);
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        assert!(
            answer.stderr.contains("--features hub"),
            "{}",
            answer.stderr
        );
    }
    assert!(!dir.join("run").exists(), "no run directory is left");
}

#[cfg(feature = "hub")]
#[allow(dead_code, reason = "not every test file needs every part")]
#[path = "../crates/selfsame-hub/tests/common/mod.rs"]
mod server;

#[cfg(feature = "hub")]
mod with_the_hub {
    use std::path::Path;

    use sha2::Digest;

    use super::common::{Answer, command, done, scratch, text};
    use super::server::{Reply, Server};

    const DATA: &str = "synthetic:portraits?count=4&seed=0";

    /// A hub that has the files of a folder as `org/net`, all of them large ones.
    fn hub_of(folder: &Path) -> Server {
        let folder = folder.to_owned();
        Server::start(move |asked| {
            let name = asked.path.rsplit('/').next().unwrap();
            let Ok(bytes) = std::fs::read(folder.join(name)) else {
                return Reply {
                    status: 404,
                    headers: vec![("x-error-code", "EntryNotFound".to_owned())],
                    ..Reply::default()
                };
            };
            let hash = sha2::Sha256::digest(&bytes);
            let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            Reply {
                status: 200,
                headers: vec![
                    ("x-linked-etag", format!("\"{hash}\"")),
                    (
                        "x-repo-commit",
                        "0123456789abcdef0123456789abcdef01234567".to_owned(),
                    ),
                ],
                body: bytes,
                ..Reply::default()
            }
        })
    }

    fn ask(server: &Server, cache: &Path, offline: bool, args: &[&str]) -> Answer {
        let mut command = command(args);
        command.env("HF_ENDPOINT", &server.address);
        command.env("HF_HUB_CACHE", cache);
        command.env_remove("HF_TOKEN");
        command.env("HF_HUB_OFFLINE", if offline { "1" } else { "0" });
        command.output().unwrap().into()
    }

    #[test]
    fn a_name_gives_the_features_of_its_files_and_again_without_the_hub() {
        let dir = scratch("hub-embed");
        let [folder, by_folder, by_name] = ["net", "folder.npy", "name.npy"].map(|n| dir.join(n));
        let (folder_text, by_folder_text, by_name_text) =
            (text(&folder), text(&by_folder), text(&by_name));
        let weights = "random:vit_tiny/8@32?seed=5";
        done(&[
            "export",
            "--weights",
            weights,
            "--format",
            "hf",
            "--out",
            &folder_text,
        ]);
        done(&[
            "embed",
            "--weights",
            &folder_text,
            "--data",
            DATA,
            "--out",
            &by_folder_text,
        ]);
        let server = hub_of(&folder);
        let cache = dir.join("cache");
        let args = [
            "embed",
            "--weights",
            "hf:org/net",
            "--data",
            DATA,
            "--out",
            &by_name_text,
        ];
        let answer = ask(&server, &cache, false, &args);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        assert!(
            answer.stderr.contains("commit 0123456789ab"),
            "{}",
            answer.stderr
        );
        let expected = std::fs::read(&by_folder).unwrap();
        assert_eq!(std::fs::read(&by_name).unwrap(), expected);

        std::fs::remove_file(&by_name).unwrap();
        let asked = server.asked().len();
        let answer = ask(&server, &cache, true, &args);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        assert!(
            answer.stderr.contains("from the cache"),
            "{}",
            answer.stderr
        );
        assert_eq!(std::fs::read(&by_name).unwrap(), expected);
        assert_eq!(server.asked().len(), asked, "offline asks nobody");

        // A run begins from it too; a repository that is not there ends before a run directory.
        let run = text(&dir.join("run"));
        let plan = |name: &str| {
            let mut args = vec![
                "plan",
                "--no-trial",
                "--data",
                "synthetic:portraits?count=40&seed=0",
            ];
            let sets = [
                "model.arch=vit_tiny",
                "model.patch_size=8",
                "model.image_size=32",
            ];
            args.extend(["--run", &run, "--init", name]);
            for set in sets
                .iter()
                .chain(&["augment.global_size=32", "augment.local_size=16"])
            {
                args.extend(["--set", *set]);
            }
            ask(&server, &cache, false, &args)
        };
        let answer = plan("hf:org/net");
        assert_eq!(answer.code, 0, "{}", answer.stderr);
    }

    #[test]
    fn what_the_hub_has_not_is_wrong_usage() {
        let dir = scratch("hub-missing");
        let server = hub_of(&dir.join("nothing"));
        for (name, word) in [
            ("hf:org/net", "config.json"),
            ("hf:net", "ORGANISATION/NAME"),
        ] {
            let answer = ask(&server, &dir.join("cache"), false, &["inspect", name]);
            assert_eq!(answer.code, 2, "{}", answer.stderr);
            assert!(answer.stderr.contains(word), "{}", answer.stderr);
        }
    }
}
