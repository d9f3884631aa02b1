use std::path::PathBuf;
use std::time::Duration;

/// Where files come from, where they are kept, and who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// The hub's address without a path; `https://huggingface.co`.
    pub endpoint: String,
    /// Folder of the cache, such as `hub` in Hugging Face's home; made if it is not there. It has no
    /// default, since this crate knows no home: empty, it is refused by [`crate::Hub::new`].
    pub cache: PathBuf,
    /// Sent to the endpoint alone, for private and gated repositories.
    pub token: Option<String>,
    /// Ask nobody: only what is in the cache.
    pub offline: bool,
    /// A proxy for all requests, `http://HOST:PORT`.
    pub proxy: Option<String>,
    /// A PEM file of the certificates to trust instead of Mozilla's.
    pub certificates: Option<PathBuf>,
    /// How often a broken transfer is taken up again without a single new byte.
    pub retries: u32,
    /// Wait before taking it up, doubled each time in a row.
    pub retry_pause: Duration,
    /// A server that says nothing for so long counts as gone.
    pub silence: Duration,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache: PathBuf::new(),
            token: None,
            offline: false,
            proxy: None,
            certificates: None,
            retries: 4,
            retry_pause: Duration::from_secs(1),
            silence: Duration::from_secs(30),
        }
    }
}

impl std::fmt::Debug for HubConfig {
    /// All but the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_in_a_debug_text() {
        let config = HubConfig {
            token: Some("hf_secret".to_owned()),
            ..HubConfig::default()
        };
        let text = format!("{config:?}");
        assert!(
            text.contains("huggingface.co") && !text.contains("secret"),
            "{text}"
        );
    }
}
