//! Names of files: those with folders, and those that are refused.

use super::*;

#[test]
fn a_file_of_a_subfolder_lies_in_one_and_is_found_again() {
    let server = Server::start(|asked| small(asked.path.as_bytes()));
    let dir = tempfile::tempdir().unwrap();
    let offline = Hub::new(HubConfig {
        cache: dir.path().to_owned(),
        offline: true,
        ..HubConfig::default()
    })
    .unwrap();
    let (odd, address_of_odd) = match cfg!(windows) {
        true => ("a/b c/ü#%.txt", "a/b%20c/%C3%BC%23%25.txt"), // whose names hold no ?
        false => ("a/b c/ü?#%.txt", "a/b%20c/%C3%BC%3F%23%25.txt"),
    };
    for (file, address, to_blobs) in [
        ("top.json", "top.json", "../../blobs"),
        ("onnx/model.onnx", "onnx/model.onnx", "../../../blobs"),
        (odd, address_of_odd, "../../../../blobs"),
    ] {
        let fetched = fetch(&server, dir.path(), file).unwrap();
        let snapshot = dir.path().join("models--org--net/snapshots").join(COMMIT);
        assert_eq!(fetched.path, snapshot.join(file));
        let bytes = std::fs::read(&fetched.path).unwrap();
        assert_eq!(bytes, format!("/org/net/resolve/main/{address}").as_bytes());
        #[cfg(unix)]
        assert_eq!(
            std::fs::read_link(&fetched.path).unwrap(),
            Path::new(to_blobs).join(git_blob(&bytes))
        );
        #[cfg(not(unix))]
        let _ = to_blobs;
        let again = fetch(&server, dir.path(), file).unwrap();
        assert_eq!(again, fetched);
        let earlier = offline.fetch(&repo(), file, &mut |_| ()).unwrap();
        assert_eq!((earlier.path, earlier.unasked), (fetched.path, true));
    }
    let error = offline.fetch(&repo(), "onnx", &mut |_| ()).unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
}

#[test]
fn a_name_that_leads_out_of_the_repository_is_refused_unasked() {
    let server = Server::start(|_| small(CONFIG));
    let dir = tempfile::tempdir().unwrap();
    fetch(&server, dir.path(), "config.json").unwrap();
    let asked = server.asked().len();
    let outside = dir.path().join("outside");
    std::fs::write(&outside, "none of the hub's").unwrap();
    for offline in [false, true] {
        let hub = Hub::new(HubConfig {
            endpoint: server.address.clone(),
            cache: dir.path().to_owned(),
            offline,
            ..HubConfig::default()
        })
        .unwrap();
        for file in [
            outside.to_str().unwrap(),
            "/config.json",
            "",
            ".",
            "..",
            "../../../outside",
            "a/../config.json",
            "./config.json",
            "a//b",
            "a/",
            "a\\b",
            "a\0b",
        ] {
            let error = hub.fetch(&repo(), file, &mut |_| ()).unwrap_err();
            assert!(
                matches!(error, HubError::FileName { .. }),
                "{file}: {error}"
            );
            assert!(error.is_usage());
        }
    }
    assert_eq!(server.asked().len(), asked);
}
