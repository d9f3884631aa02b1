use std::path::PathBuf;
use std::time::Duration;

use crate::http::without_user;

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
    /// All settings, but neither the token nor a user or password within an address.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &without_user(&self.endpoint))
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .field("proxy", &self.proxy.as_deref().map(without_user))
            .field("certificates", &self.certificates)
            .field("retries", &self.retries)
            .field("retry_pause", &self.retry_pause)
            .field("silence", &self.silence)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_text_has_every_setting_and_no_secret() {
        let config = HubConfig {
            endpoint: "https://me:secret@hub.example".to_owned(),
            token: Some("hf_secret".to_owned()),
            proxy: Some("me:se/cr?secret@proxy.example:3128".to_owned()),
            certificates: Some("roots.pem".into()),
            ..HubConfig::default()
        };
        assert_eq!(
            format!("{config:?}"),
            "HubConfig { endpoint: \"https://…@hub.example\", cache: \"\", token: Some(\"…\"), \
             offline: false, proxy: Some(\"…@proxy.example:3128\"), \
             certificates: Some(\"roots.pem\"), retries: 4, retry_pause: 1s, silence: 30s }"
        );
        let text = format!("{:?}", HubConfig::default());
        assert!(text.contains("\"https://huggingface.co\""), "{text}");
    }
}
