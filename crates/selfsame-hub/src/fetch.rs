use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use selfsame_files::{rename, sync};
use ureq::http::header;

use crate::cache::{RepoCache, is_commit};
use crate::checksum::Checksum;
use crate::config::HubConfig;
use crate::error::HubError;
use crate::http::{Answer, Client, Told, shown};
use crate::repo::{RepoId, check_file};

/// Bytes of a file whose size the hub does not tell, at most.
const MAX_UNTOLD: u64 = 64 << 20;

/// What is beside the weights and may be missing.
const OPTIONAL: [&str; 1] = ["preprocessor_config.json"];
/// The names of weights, the better first.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// A hub and the cache of what came from it.
pub struct Hub {
    config: HubConfig,
    client: Client,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// How far a file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file.
    pub file: &'a str,
    /// Bytes on disk.
    pub done: u64,
    /// Bytes in all, if the hub tells.
    pub total: Option<u64>,
}

/// A file in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The file, under its own name.
    pub path: PathBuf,
    /// The commit it belongs to; the revision asked for, if a mirror tells no commit.
    pub commit: String,
    /// Whether it is an earlier copy because the hub could not be asked.
    pub unasked: bool,
}

/// A model's files in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedWeights {
    /// Holds `config.json` and the weights.
    pub folder: PathBuf,
    /// The weights in it, under their own name.
    pub weights: PathBuf,
    /// The commit that all of them belong to, as in [`Fetched::commit`].
    pub commit: String,
    /// Whether they are an earlier copy because the hub could not be asked.
    pub unasked: bool,
}

impl Hub {
    /// A hub; nothing is asked yet.
    ///
    /// # Errors
    /// [`HubError::Setting`] for an endpoint, proxy, certificates or a token that cannot be used, or
    /// an empty cache.
    pub fn new(config: HubConfig) -> Result<Self, HubError> {
        let client = Client::new(&config)?;
        if config.cache.as_os_str().is_empty() {
            return Err(HubError::Setting {
                what: "cache",
                why: "no folder given to keep files in".to_owned(),
            });
        }
        Ok(Self { config, client })
    }

    /// A model's configuration and weights, all of one commit, `model.safetensors` before
    /// `pytorch_model.bin`.
    ///
    /// If the hub cannot be reached from the first file on, has no answer (429, 5xx) or is not to be
    /// asked, an earlier copy is taken as it is. If it fails later, what it did not answer for is not
    /// taken for missing.
    ///
    /// # Errors
    /// As [`Hub::fetch`]; [`HubError::NotFound`], or of an earlier copy [`HubError::NotCached`], with
    /// both names if it has no weights of either.
    pub fn fetch_weights(
        &self,
        repo: &RepoId,
        on_progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<FetchedWeights, HubError> {
        let config = self.fetch(repo, "config.json", on_progress)?;
        let repo = match is_commit(&config.commit) {
            true => repo.at(&config.commit),
            false => repo.clone(),
        };
        let why = match (self.config.offline, config.unasked) {
            (true, _) => Some("is not to be asked"),
            (false, true) => Some("gave no answer"),
            (false, false) => None,
        };
        let mut get = |file: &str| match why {
            Some(why) => {
                let cache = RepoCache::new(&self.config.cache, &repo);
                self.earlier(&cache, &repo, file, why.to_owned())
            }
            None => self.fetch(&repo, file, on_progress),
        };
        let is_missing = |error: &HubError| match error {
            HubError::NotFound { .. } => true,
            HubError::NotCached { .. } => why.is_some(),
            _ => false,
        };
        for file in OPTIONAL {
            match get(file) {
                Err(error) if !is_missing(&error) => return Err(error),
                _ => {}
            }
        }
        let [better, other] = WEIGHTS;
        let weights = match get(better) {
            Err(error) if is_missing(&error) => get(other).map_err(|error| {
                let neither = is_missing(&error);
                if neither { of_neither(error) } else { error }
            })?,
            got => got?,
        };
        Ok(FetchedWeights {
            folder: weights.path.parent().unwrap_or(Path::new("")).to_owned(),
            weights: weights.path,
            commit: config.commit,
            unasked: config.unasked || weights.unasked,
        })
    }

    /// A file of a repository, from the cache if it holds what the hub has now.
    ///
    /// `file` is a name such as `config.json` or `onnx/model.onnx`. If the hub cannot be reached, has
    /// no answer (429, 5xx) or is not to be asked, an earlier copy is taken.
    ///
    /// # Errors
    /// [`HubError::FileName`] for an absolute path, one with `..`, a backslash or an empty part;
    /// other [`HubError`]s, each with what to do about it.
    pub fn fetch(
        &self,
        repo: &RepoId,
        file: &str,
        on_progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Fetched, HubError> {
        check_file(file)?;
        let cache = RepoCache::new(&self.config.cache, repo);
        if self.config.offline {
            return self.earlier(&cache, repo, file, "is not to be asked".to_owned());
        }
        let url = self.client.url(&repo.path(), repo.revision(), file);
        let told = match self.head_again(&url) {
            Ok(Ok(told)) => told,
            Ok(Err((status @ (401 | 403), code))) if code.as_deref() != Some("EntryNotFound") => {
                return Err(HubError::Refused {
                    repo: repo.to_string(),
                    status,
                });
            }
            Ok(Err((401 | 403 | 404, code))) => {
                return Err(HubError::NotFound {
                    repo: repo.to_string(),
                    file: file.to_owned(),
                    why: code.map_or_else(String::new, |code| format!(" ({code})")),
                });
            }
            Ok(Err((status, _))) => {
                let is_busy = matches!(status, 429 | 500..=599);
                let answer = HubError::Status {
                    url: shown(&url),
                    status,
                };
                let why = format!("answers {status}");
                return match is_busy.then(|| self.earlier(&cache, repo, file, why)) {
                    Some(Ok(earlier)) => Ok(earlier),
                    _ => Err(answer),
                };
            }
            Err(HubError::Transfer { why, .. }) => {
                return self.earlier(&cache, repo, file, format!("cannot be reached: {why}"));
            }
            Err(error) => return Err(error),
        };
        // A mirror that tells no commit keeps its files under the revision's name.
        let commit = told.commit.clone().filter(|commit| is_commit(commit));
        let commit = commit.unwrap_or_else(|| repo.revision().to_owned());
        let lock = cache.lock(&told.checksum)?;
        let blob = cache.blob(&told.checksum);
        let is_there = blob.exists() && told.checksum.of(&blob)? == told.checksum.hex();
        if !is_there {
            let partial = cache.partial(&told.checksum);
            self.download(&url, file, &told, &partial, on_progress)?;
            rename(&partial, &blob).map_err(HubError::io(&blob))?;
        }
        drop(lock);
        let path = cache.link(&commit, file, &told.checksum)?;
        if commit != repo.revision() {
            cache.remember(repo.revision(), &commit)?;
        }
        Ok(Fetched {
            path,
            commit,
            unasked: false,
        })
    }

    /// What was fetched before.
    fn earlier(
        &self,
        cache: &RepoCache,
        repo: &RepoId,
        file: &str,
        why: String,
    ) -> Result<Fetched, HubError> {
        let commit = cache.remembered(repo.revision());
        let commit = commit.unwrap_or_else(|| repo.revision().to_owned());
        let path = cache.snapshot(&commit).join(file);
        if !path.is_file() {
            return Err(HubError::NotCached {
                repo: repo.to_string(),
                file: file.to_owned(),
                cache: self.config.cache.clone(),
                why,
            });
        }
        Ok(Fetched {
            path,
            commit,
            unasked: true,
        })
    }

    /// Asks for a file's hash, again if the server is busy or not reached.
    fn head_again(&self, url: &str) -> Result<Result<Told, (u16, Option<String>)>, HubError> {
        let mut pause = self.config.retry_pause;
        for _ in 0..self.config.retries {
            match self.client.head(url) {
                Ok(Err((429 | 500..=599, _))) | Err(HubError::Transfer { .. }) => {
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                answer => return answer,
            }
        }
        self.client.head(url)
    }

    /// Brings a file to `partial`, from where it broke off, and checks it.
    fn download(
        &self,
        url: &str,
        file: &str,
        told: &Told,
        partial: &Path,
        on_progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), HubError> {
        if told.size.is_some_and(|size| length(partial) > size) {
            // Left by something else.
            fs::remove_file(partial).map_err(HubError::io(partial))?;
        }
        let (mut tries, mut pause) = (0, self.config.retry_pause);
        // Only bytes that no request before has brought are new: others could come for ever.
        let mut best = length(partial);
        loop {
            let broke = match self.take_up(url, file, told, partial, on_progress) {
                Ok(None) => break,
                Ok(Some(why)) => why,
                Err(HubError::Transfer { why, .. }) => why,
                Err(error) => return Err(error),
            };
            if length(partial) > best {
                best = length(partial);
                (tries, pause) = (0, self.config.retry_pause);
                continue;
            }
            if tries == self.config.retries {
                return Err(HubError::Transfer {
                    url: shown(url),
                    why: broke,
                });
            }
            tries += 1;
            std::thread::sleep(pause);
            pause *= 2;
        }
        check(&told.checksum, file, partial)
    }

    /// Asks for what is missing, or for all of it if the server does not go on there; `Some` says why
    /// it ended before the end.
    ///
    /// What is on the disk is written over, not cut off: it is the same file, by its hash.
    fn take_up(
        &self,
        url: &str,
        file: &str,
        told: &Told,
        partial: &Path,
        on_progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<String>, HubError> {
        let done = length(partial);
        if done > 0 && told.size == Some(done) {
            return Ok(None);
        }
        match self.ask_from(url, done)? {
            Ok((answer, done)) => write(answer, done, told.size, file, partial, on_progress),
            Err(busy) => Ok(Some(busy)),
        }
    }

    /// Asks for what follows `done` bytes, or for all of it if the server does not go on there: the
    /// answer and where it begins, or that the server is busy.
    fn ask_from(
        &self,
        url: &str,
        mut done: u64,
    ) -> Result<Result<(Answer, u64), String>, HubError> {
        let starts_at = |answer: &Answer, from: u64| {
            let range = answer.response.headers().get(header::CONTENT_RANGE);
            let range = range.and_then(|value| value.to_str().ok());
            range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
        };
        let mut answer = self.client.get(url, done)?;
        let goes_on = match answer.response.status().as_u16() {
            206 => starts_at(&answer, done),
            status => status != 416,
        };
        if done > 0 && !goes_on {
            done = 0;
            answer = self.client.get(url, 0)?;
        }
        match answer.response.status().as_u16() {
            206 if starts_at(&answer, done) => Ok(Ok((answer, done))),
            // A server that does not know ranges sends all of it.
            200 => Ok(Ok((answer, 0))),
            status @ (429 | 500..=599) => Ok(Err(format!("the server answers {status}"))),
            status => Err(HubError::Status {
                url: shown(&answer.url),
                status,
            }),
        }
    }
}

/// Writes an answer to `partial`, from byte `done` on; `Some` says why it ended before the end.
fn write(
    answer: Answer,
    mut done: u64,
    total: Option<u64>,
    file: &str,
    partial: &Path,
    on_progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Option<String>, HubError> {
    let io = || HubError::io(partial);
    let mut out = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(partial)
        .map_err(io())?;
    std::io::Seek::seek(&mut out, std::io::SeekFrom::Start(done)).map_err(io())?;
    let limit = total.unwrap_or(MAX_UNTOLD);
    let mut body = answer.response.into_body();
    let mut body = body.as_reader();
    let mut buffer = vec![0; 1 << 16];
    let broke = loop {
        match body.read(&mut buffer) {
            Ok(0) => break None,
            Ok(n) if done + n as u64 > limit => {
                drop(out);
                fs::remove_file(partial).map_err(io())?;
                return Err(HubError::TooLong {
                    file: file.to_owned(),
                    limit,
                });
            }
            Ok(n) => {
                out.write_all(&buffer[..n]).map_err(io())?;
                done += n as u64;
                on_progress(Progress { file, done, total });
            }
            Err(error) => break Some(error.to_string()),
        }
    };
    let broke = match (broke, total) {
        (None, Some(size)) if done < size => Some(format!("it ended after {done} of {size} bytes")),
        (broke, _) => broke,
    };
    if broke.is_none() {
        out.set_len(done).map_err(io())?; // the file may have been shorter than what lay there
    }
    sync(&out).map_err(io())?;
    Ok(broke)
}

/// The error of weights that are there under neither name.
fn of_neither(error: HubError) -> HubError {
    let either = WEIGHTS.join(" or ");
    match error {
        HubError::NotFound { repo, why, .. } => HubError::NotFound {
            repo,
            file: either,
            why,
        },
        HubError::NotCached {
            repo, cache, why, ..
        } => HubError::NotCached {
            repo,
            file: either,
            cache,
            why,
        },
        other => other,
    }
}

/// Removes a file whose bytes are not those promised.
fn check(checksum: &Checksum, file: &str, path: &Path) -> Result<(), HubError> {
    let found = checksum.of(path)?;
    if found == checksum.hex() {
        return Ok(());
    }
    fs::remove_file(path).map_err(HubError::io(path))?;
    Err(HubError::Checksum {
        file: file.to_owned(),
        algorithm: checksum.algorithm(),
        expected: checksum.hex().to_owned(),
        found,
    })
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}
