//! Requests to the hub, redirects followed by hand: the token stays with the hub.

use std::time::Duration;

use ureq::http::{Response, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use crate::checksum::Checksum;
use crate::config::HubConfig;
use crate::error::HubError;

/// Redirects followed at most.
const MAX_HOPS: usize = 8;

/// What the hub tells of a file before it.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) checksum: Checksum,
    pub(crate) size: Option<u64>,
    /// Of the state that the file belongs to, if it tells.
    pub(crate) commit: Option<String>,
}

/// Asks a hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: Uri,
    token: Option<String>,
}

/// An answer that is no redirect.
pub(crate) struct Answer {
    pub(crate) url: String,
    pub(crate) response: Response<Body>,
}

impl Client {
    pub(crate) fn new(config: &HubConfig) -> Result<Self, HubError> {
        let wrong = |what, why: String| HubError::Setting { what, why };
        let endpoint: Uri = config
            .endpoint
            .trim_end_matches('/')
            .parse()
            .map_err(|error| {
                let shown = without_user(&config.endpoint);
                wrong("endpoint", format!("{shown:?}: {error}"))
            })?;
        if !matches!(endpoint.scheme_str(), Some("http" | "https"))
            || endpoint.authority().is_none()
        {
            let why = format!(
                "{:?} is not an address such as https://huggingface.co",
                without_user(&config.endpoint)
            );
            return Err(wrong("endpoint", why));
        }
        let proxy = match &config.proxy {
            None => None,
            Some(text) => Some(Proxy::new(text).map_err(|error| {
                wrong("proxy", format!("{:?}: {}", without_user(text), why(error)))
            })?),
        };
        let mut tls = TlsConfig::builder();
        if let Some(path) = &config.certificates {
            let pem = std::fs::read(path).map_err(HubError::io(path))?;
            let mut roots = Vec::new();
            for item in parse_pem(&pem) {
                match item {
                    Ok(PemItem::Certificate(certificate)) => roots.push(certificate),
                    Ok(_) => {}
                    Err(error) => return Err(wrong("certificates", error.to_string())),
                }
            }
            if roots.is_empty() {
                let why = format!("{} holds none", path.display());
                return Err(wrong("certificates", why));
            }
            tls = tls.root_certs(RootCerts::from(roots));
        }
        let is_plain = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        if !config.token.as_ref().is_none_or(is_plain) {
            let why = "it has a blank, a line break or another character that none has";
            return Err(wrong("token", why.to_owned()));
        }
        let agent = Agent::config_builder()
            .https_only(endpoint.scheme_str() == Some("https"))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy)
            .tls_config(tls.build())
            .user_agent(concat!("selfsame/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(config.silence))
            .timeout_per_read(Some(config.silence))
            .build()
            .into();
        Ok(Self {
            agent,
            endpoint,
            token: config.token.clone(),
        })
    }

    /// The address of a file.
    pub(crate) fn url(&self, path: &str, revision: &str, file: &str) -> String {
        let endpoint = self.endpoint.to_string();
        let endpoint = endpoint.trim_end_matches('/');
        format!("{endpoint}/{path}/resolve/{revision}/{}", quoted(file))
    }

    /// What the hub tells of a file; redirects to other hosts, where large files lie, are not
    /// followed (huggingface_hub, `get_hf_file_metadata`).
    ///
    /// # Errors
    /// The status if it is none of success, [`HubError::NoChecksum`], [`HubError::Transfer`].
    pub(crate) fn head(&self, url: &str) -> Result<Result<Told, (u16, Option<String>)>, HubError> {
        let (mut linked, mut linked_size, mut commit) = (None, None, None);
        let mut at = url.to_owned();
        for _ in 0..MAX_HOPS {
            let response = self.request(&at, Method::Head)?;
            let text = |name: &str| {
                let value = response.headers().get(name)?;
                Some(value.to_str().ok()?.to_owned())
            };
            let number = |name: &str| text(name)?.parse().ok();
            linked = text("x-linked-etag").or(linked);
            linked_size = number("x-linked-size").or(linked_size);
            commit = text("x-repo-commit").or(commit);
            match next_hop(&at, &response)? {
                Some(next) if self.is_at_hub(&next) => at = next,
                None if !response.status().is_success() => {
                    let code = text("x-error-code");
                    return Ok(Err((response.status().as_u16(), code)));
                }
                hop => {
                    // The length of a redirect's own answer says nothing about the file.
                    let size = match hop {
                        Some(_) => None,
                        None => number("content-length"),
                    };
                    let etag = linked.or_else(|| text("etag"));
                    let checksum = etag.as_deref().and_then(Checksum::from_etag);
                    let Some(checksum) = checksum else {
                        return Err(HubError::NoChecksum {
                            url: shown(url),
                            etag,
                        });
                    };
                    return Ok(Ok(Told {
                        checksum,
                        size: linked_size.or(size),
                        commit,
                    }));
                }
            }
        }
        Err(too_many(url))
    }

    /// A file from byte `from` on, wherever redirects lead.
    ///
    /// # Errors
    /// [`HubError::Transfer`], [`HubError::Redirect`].
    pub(crate) fn get(&self, url: &str, from: u64) -> Result<Answer, HubError> {
        let mut at = url.to_owned();
        for _ in 0..MAX_HOPS {
            let response = self.request(&at, Method::Get { from })?;
            match next_hop(&at, &response)? {
                Some(next) => at = next,
                None => return Ok(Answer { url: at, response }),
            }
        }
        Err(too_many(url))
    }

    fn request(&self, url: &str, method: Method) -> Result<Response<Body>, HubError> {
        let mut request = match method {
            Method::Head => self.agent.head(url),
            Method::Get { .. } => self.agent.get(url),
        };
        if let Method::Get { from: from @ 1.. } = method {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let (Some(token), true) = (&self.token, self.is_at_hub(url)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.call().map_err(|error| HubError::Transfer {
            url: shown(url),
            why: why(error),
        })
    }

    /// Whether an address is the hub itself: same scheme, host and port.
    fn is_at_hub(&self, url: &str) -> bool {
        url.parse::<Uri>().is_ok_and(|uri| {
            uri.scheme() == self.endpoint.scheme() && uri.authority() == self.endpoint.authority()
        })
    }
}

#[derive(Clone, Copy)]
enum Method {
    Head,
    Get { from: u64 },
}

/// Where an answer leads; `None` if it is no redirect.
fn next_hop(at: &str, response: &Response<Body>) -> Result<Option<String>, HubError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let wrong = |why: String| HubError::Redirect {
        url: shown(at),
        why,
    };
    let location = response.headers().get(header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| wrong("a redirect to nowhere".to_owned()))?;
    let target: Uri = location
        .parse()
        .map_err(|_| wrong(format!("a redirect to {:?}", shown(location))))?;
    if target.scheme().is_some() {
        return Ok(Some(location.to_owned()));
    }
    let here: Uri = at.parse().map_err(|_| wrong("no address".to_owned()))?;
    match (here.scheme_str(), here.authority()) {
        (Some(scheme), Some(host)) if location.starts_with('/') && !location.starts_with("//") => {
            Ok(Some(format!("{scheme}://{host}{location}")))
        }
        _ => Err(wrong(format!("a redirect to {:?}", shown(location)))),
    }
}

/// A file's name as part of an address, as Python's `urllib.parse.quote` writes it.
fn quoted(file: &str) -> String {
    let mut text = String::with_capacity(file.len());
    for byte in file.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn too_many(url: &str) -> HubError {
    HubError::Redirect {
        url: shown(url),
        why: format!("more than {MAX_HOPS} redirects"),
    }
}

/// An address for a message: what stands before `@` may be a password, what stands after `?` a
/// signature.
pub(crate) fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or(url);
    let host = url.find("://").map_or(0, |at| at + 3);
    let path = url[host..].find('/').map_or(url.len(), |at| host + at);
    without_user(&url[..path]) + &url[path..]
}

/// A setting that may be no sound address, for a message: nothing of what stands before its last `@`
/// but the scheme.
pub(crate) fn without_user(text: &str) -> String {
    let scheme = text.find("://").map_or("", |at| &text[..at + 3]);
    match text.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}…@{host}"),
        None => text.to_owned(),
    }
}

/// What went wrong, without an address in it.
fn why(error: ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) => "its address is none".to_owned(),
        ureq::Error::RequireHttpsOnly(_) => "its address is not a secure one".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_a_message_has_neither_user_nor_signature() {
        for (url, expected) in [
            ("https://a.b/c", "https://a.b/c"),
            ("https://a.b/c@d/e", "https://a.b/c@d/e"),
            ("https://me:p@ss@a.b:1/c@d?sig=x@y", "https://…@a.b:1/c@d"),
            ("/path?x=1", "/path"),
        ] {
            assert_eq!(shown(url), expected, "{url}");
        }
        for (text, expected) in [
            ("me:p@a:1", "…@a:1"),
            ("http://me:p/w?#@a:1", "http://…@a:1"),
            ("::::", "::::"),
        ] {
            assert_eq!(without_user(text), expected);
        }
    }
}
