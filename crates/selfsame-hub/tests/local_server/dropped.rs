//! A model of which the hub answers for some files only, or for none.

use super::*;

#[test]
fn a_file_that_the_server_does_not_answer_for_is_not_taken_for_missing() {
    for dropped in ["preprocessor_config.json", "model.safetensors"] {
        let dir = tempfile::tempdir().unwrap();
        let answer = move |asked: &Asked, drops: bool| match asked.path.rsplit('/').next().unwrap()
        {
            file if drops && file == dropped => Reply::default(),
            "config.json" | "preprocessor_config.json" => small(CONFIG),
            _ => small(b"weights"),
        };
        let server = Server::start(move |asked| answer(asked, true));
        let error = hub(&server, dir.path())
            .fetch_weights(&repo(), &mut |_| ())
            .unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, HubError::NotCached { .. }), "{text}");
        assert!(
            text.contains(dropped) && text.contains("cannot be reached"),
            "{text}"
        );

        // Once it has been fetched, the copy of that commit is taken.
        let whole = Server::start(move |asked| answer(asked, false));
        let fetched = hub(&whole, dir.path())
            .fetch_weights(&repo(), &mut |_| ())
            .unwrap();
        let again = hub(&server, dir.path())
            .fetch_weights(&repo(), &mut |_| ())
            .unwrap();
        assert_eq!(again.folder, fetched.folder);
        assert_eq!(again.unasked, dropped == "model.safetensors");
    }
}

#[test]
fn an_earlier_copy_without_weights_is_told_by_both_names() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| small(CONFIG));
    fetch(&server, dir.path(), "config.json").unwrap();
    let offline = Hub::new(HubConfig {
        cache: dir.path().to_owned(),
        offline: true,
        ..HubConfig::default()
    });
    let error = offline.unwrap().fetch_weights(&repo(), &mut |_| ());
    let error = error.unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    let text = error.to_string();
    let told = "model.safetensors or pytorch_model.bin is not in";
    assert!(text.contains(told), "{text}");
}

#[test]
fn an_earlier_copy_of_a_model_is_taken_with_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|asked| match asked.path.rsplit('/').next().unwrap() {
        "config.json" => small(CONFIG),
        "pytorch_model.bin" => small(b"weights"),
        _ => missing(),
    });
    let first = hub(&server, dir.path())
        .fetch_weights(&repo(), &mut |_| ())
        .unwrap();
    for (offline, status) in [(true, 0), (false, 0), (false, 503)] {
        let gone = Server::start(move |_| Reply {
            status,
            ..Reply::default()
        });
        let hub = Hub::new(HubConfig {
            endpoint: gone.address.clone(),
            cache: dir.path().to_owned(),
            offline,
            retries: 1,
            retry_pause: Duration::ZERO,
            ..HubConfig::default()
        })
        .unwrap();
        let again = hub.fetch_weights(&repo(), &mut |_| ()).unwrap();
        assert_eq!((again.folder, again.unasked), (first.folder.clone(), true));
        let asked = gone.asked();
        assert!(asked.iter().all(|a| a.path.ends_with("/config.json")));
        assert_eq!(asked.is_empty(), offline);
    }
    // Without a copy the server's answer is told.
    let busy = Server::start(|_| Reply {
        status: 503,
        ..Reply::default()
    });
    let nothing = tempfile::tempdir().unwrap();
    let error = hub(&busy, nothing.path())
        .fetch_weights(&repo(), &mut |_| ())
        .unwrap_err();
    assert!(
        matches!(error, HubError::Status { status: 503, .. }),
        "{error}"
    );
}
