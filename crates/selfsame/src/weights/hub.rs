//! `hf:ORG/NAME[@REVISION]`: weights of the Hugging Face hub, in builds with the feature `hub`.

use std::path::PathBuf;

#[cfg(feature = "hub")]
use crate::stderr::tell;

/// The weights of a repository, beside its configuration.
///
/// # Errors
/// A usage error: this program was built without what it takes.
#[cfg(not(feature = "hub"))]
pub(super) fn file(name: &str) -> anyhow::Result<PathBuf> {
    Err(crate::exit::usage(format!(
        "hf:{name}: this program was built without the hub; build it with \
         `cargo build --release --features hub`, or name a folder with the repository's files"
    )))
}

/// The weights of a repository, beside its configuration, fetched if need be.
///
/// # Errors
/// A usage error for what the hub does not have or does not give to everybody; else what went
/// wrong on the way.
#[cfg(feature = "hub")]
pub(super) fn file(name: &str) -> anyhow::Result<PathBuf> {
    use selfsame_hub::{Hub, HubError, Progress};

    let as_usage = |error: HubError| match error.is_usage() {
        true => crate::exit::usage(format!("hf:{name}: {error}")),
        false => anyhow::Error::new(error).context(format!("hf:{name}")),
    };
    let repo = name.parse().map_err(as_usage)?;
    let hub = settings::config(|key| std::env::var(key).ok().filter(|value| !value.is_empty()));
    let hub = Hub::new(hub).map_err(as_usage)?;
    let mut bar: Option<(String, crate::progress::CountProgress)> = None;
    let mut on_progress = |now: Progress<'_>| {
        let mib = |bytes: u64| (bytes >> 20) as usize;
        let total = mib(now.total.unwrap_or(0));
        if total == 0 {
            return;
        }
        if bar.as_ref().is_none_or(|(file, _)| file != now.file) {
            tell!("fetching {} of hf:{name}, {total} MiB", now.file);
            let new = crate::progress::CountProgress::new("MiB", total);
            bar = Some((now.file.to_owned(), new));
        }
        if let Some((_, bar)) = &mut bar {
            bar.set(mib(now.done));
        }
    };
    let fetched = hub
        .fetch_weights(&repo, &mut on_progress)
        .map_err(as_usage)?;
    let commit = &fetched.commit[..fetched.commit.len().min(12)];
    match fetched.unasked {
        true => {
            tell!("note: hf:{name}: without an answer of the hub: commit {commit} from the cache")
        }
        false => tell!("hf:{name}: commit {commit}"),
    }
    Ok(fetched.weights)
}

/// Settings from the variables that Hugging Face's own programs read.
#[cfg(feature = "hub")]
mod settings {
    use std::path::{Path, PathBuf};

    use selfsame_hub::HubConfig;

    /// A configuration from environment variables, given by `get`; an empty one counts as absent.
    pub(super) fn config(get: impl Fn(&str) -> Option<String>) -> HubConfig {
        let defaults = HubConfig::default();
        let endpoint = get("HF_ENDPOINT").unwrap_or(defaults.endpoint);
        let is_on =
            |value: String| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on");
        HubConfig {
            cache: cache(&get),
            token: get("HF_TOKEN"),
            offline: get("HF_HUB_OFFLINE").is_some_and(is_on),
            proxy: proxy(&endpoint, &get),
            certificates: get("SSL_CERT_FILE").map(PathBuf::from),
            endpoint,
            ..HubConfig::default()
        }
    }

    /// huggingface_hub's constants.py: HF_HUB_CACHE, else `hub` in HF_HOME, else in the user's cache.
    fn cache(get: &impl Fn(&str) -> Option<String>) -> PathBuf {
        if let Some(cache) = get("HF_HUB_CACHE") {
            return cache.into();
        }
        let home = || {
            let caches = get("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| {
                let user = get("HOME").or_else(|| get("USERPROFILE"))?;
                Some(Path::new(&user).join(".cache"))
            });
            caches
                .unwrap_or_else(|| ".cache".into())
                .join("huggingface")
        };
        get("HF_HOME").map_or_else(home, PathBuf::from).join("hub")
    }

    /// The proxy of secure addresses, unless NO_PROXY names the host or a domain above it.
    fn proxy(endpoint: &str, get: &impl Fn(&str) -> Option<String>) -> Option<String> {
        let either = |name: &str| get(name).or_else(|| get(&name.to_lowercase()));
        let host = endpoint.strip_prefix("https://")?;
        let host = host.split(['/', ':']).next().unwrap_or(host);
        let is_left_out = |name: &str| {
            let name = name.trim().trim_start_matches("*.").trim_start_matches('.');
            let below = || {
                host.strip_suffix(name)
                    .is_some_and(|rest| rest.ends_with('.'))
            };
            name == "*" || (!name.is_empty() && (host == name || below()))
        };
        if either("NO_PROXY").is_some_and(|names| names.split(',').any(is_left_out)) {
            return None;
        }
        either("HTTPS_PROXY").or_else(|| either("ALL_PROXY"))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn of(variables: &[(&str, &str)]) -> HubConfig {
            config(|key| {
                let found = variables.iter().find(|(name, _)| *name == key);
                found.map(|(_, value)| (*value).to_owned())
            })
        }

        #[test]
        fn the_cache_is_where_python_keeps_it() {
            for (variables, expected) in [
                (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
                (
                    &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
                    "/x/huggingface/hub",
                ),
                (&[("HOME", "/h"), ("HF_HOME", "/f")], "/f/hub"),
                (&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], "/c"),
            ] {
                assert_eq!(of(variables).cache, Path::new(expected));
            }
        }

        #[test]
        fn a_proxy_is_for_secure_hosts_that_are_not_left_out() {
            let proxy = ("HTTPS_PROXY", "http://proxy:3128");
            assert_eq!(of(&[proxy]).proxy.as_deref(), Some(proxy.1));
            assert_eq!(
                of(&[("https_proxy", "http://p:1")]).proxy.as_deref(),
                Some("http://p:1")
            );
            for left_out in ["huggingface.co", "a, .co", "*", "*.co"] {
                assert_eq!(
                    of(&[proxy, ("NO_PROXY", left_out)]).proxy,
                    None,
                    "{left_out}"
                );
            }
            for other in ["face.co", "example.com", "", ","] {
                assert!(of(&[proxy, ("NO_PROXY", other)]).proxy.is_some(), "{other}");
            }
            assert_eq!(
                of(&[proxy, ("HF_ENDPOINT", "http://127.0.0.1:80")]).proxy,
                None
            );
        }

        #[test]
        fn other_variables_are_taken_as_they_are() {
            let config = of(&[
                ("HF_ENDPOINT", "https://mirror.example"),
                ("HF_TOKEN", "secret"),
                ("HF_HUB_OFFLINE", "1"),
                ("SSL_CERT_FILE", "/roots.pem"),
            ]);
            assert_eq!(config.endpoint, "https://mirror.example");
            assert_eq!(config.token.as_deref(), Some("secret"));
            assert!(config.offline && !of(&[("HF_HUB_OFFLINE", "0")]).offline);
            assert_eq!(
                config.certificates.as_deref(),
                Some(Path::new("/roots.pem"))
            );
        }
    }
}
