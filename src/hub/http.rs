//! Requests: retried with growing waits, redirected by hand so that the token goes to the endpoint alone.
//!
//! Not for: what a body must look like (`download`, `verify`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::HeaderMap;

use super::HubOptions;
use crate::error::{Error, Result as Done};
use crate::progress::Progress;

/// A server may ask to wait, but not for ever.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const MOST_REDIRECTS: usize = 10;

/// What went wrong, as far as it decides what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No connection, or one that broke or fell silent.
    Unreachable,
    /// 429 or 5xx, after all retries.
    Busy,
    /// 404: nothing there.
    Missing,
    /// 401 or 403.
    Denied,
    /// A reply that makes no sense.
    Wrong,
    /// The user stopped it.
    Cancelled,
}

/// A request that came to nothing.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub kind: Kind,
    pub url: String,
    pub problem: String,
    /// `X-Error-Code` of the hub, such as RepoNotFound or GatedRepo.
    pub code: String,
}

impl Failure {
    pub fn new(kind: Kind, url: &str, problem: impl Into<String>) -> Self {
        Self { kind, url: url.to_string(), problem: problem.into(), code: String::new() }
    }

    /// As the user reads it. `what` is what was wanted.
    pub fn into_error(self, what: &str) -> Error {
        let Self { kind, url, problem, code } = self;
        match kind {
            Kind::Cancelled => Error::Cancelled { doing: "a download" },
            Kind::Missing => {
                Error::request(format!("{what}: not found ({url}: {problem})"), "check the id and the revision for typing errors")
            }
            Kind::Denied if code == "RepoNotFound" => Error::request(
                format!("{what}: no such repository, or a private one ({url}: {problem})"),
                "check the id; for a private repository set HF_TOKEN to a token that may read it",
            ),
            Kind::Denied => Error::request(
                format!("{what}: access refused ({url}: {problem})"),
                "check the id; if the repository is gated accept its licence on its page, then set HF_TOKEN to a token that may read it",
            ),
            Kind::Unreachable | Kind::Busy => Error::Download {
                url,
                problem,
                help: "check the network and HF_ENDPOINT, and run the command again (a harvest with --resume); what is complete is not fetched twice"
                    .into(),
            },
            Kind::Wrong => Error::Download { url, problem, help: "run the command again (a harvest with --resume); if it stays so, the server is at fault".into() },
        }
    }
}

/// A reply, after redirects.
pub(super) struct Reply {
    /// Where it came from.
    pub url: String,
    pub status: u16,
    /// Of the last hop.
    pub headers: HeaderMap,
    /// Of the first hop: what the hub says of a file that lies elsewhere.
    pub first: HeaderMap,
    pub body: ureq::Body,
}

impl Reply {
    /// A header, of the first hop where that has it.
    pub fn header(&self, name: &str) -> Option<&str> {
        [&self.first, &self.headers].into_iter().find_map(|h| h.get(name)?.to_str().ok())
    }

    /// A header of the last hop.
    pub fn last(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// How long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// The first contact: a machine without a network should hear so soon.
    Lookup,
    /// Something that is known to be there.
    Full,
}

/// Sends requests.
pub(super) struct Http {
    direct: ureq::Agent,
    proxied: Option<ureq::Agent>,
    options: HubOptions,
    progress: Arc<dyn Progress + Send + Sync>,
}

impl Http {
    pub fn new(options: HubOptions, progress: Arc<dyn Progress + Send + Sync>) -> Done<Self> {
        if !options.endpoint.starts_with("https://") && !options.endpoint.starts_with("http://") {
            return Err(Error::request(
                format!("the hub's address `{}` is no URL", options.endpoint),
                "set HF_ENDPOINT to something like https://huggingface.co, or leave it out",
            ));
        }
        if options.token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::request("the hub token holds characters that no token has", "check HF_TOKEN or the token file"));
        }
        let agent = |proxy: Option<ureq::Proxy>| {
            ureq::Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .proxy(proxy)
                .user_agent(concat!("lapidary/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .timeout_resolve(Some(options.timeout))
                .timeout_connect(Some(options.timeout))
                .timeout_per_read(Some(options.timeout))
                .timeout_recv_response(Some(options.timeout))
                .build()
                .new_agent()
        };
        let proxied = match &options.proxy {
            None => None,
            Some(address) => {
                let proxy = ureq::Proxy::new(address).map_err(|_| {
                    Error::request("the address of the proxy is no URL", "check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, or unset them")
                })?;
                Some(agent(Some(proxy)))
            }
        };
        Ok(Self { direct: agent(None), proxied, options, progress })
    }

    pub fn progress(&self) -> &(dyn Progress + Send + Sync) {
        self.progress.as_ref()
    }

    pub fn options(&self) -> &HubOptions {
        &self.options
    }

    /// HEAD; any status below 500 but 429 is a reply.
    pub fn head(&self, url: &str, patience: Patience) -> Result<Reply, Failure> {
        self.send(url, true, None, patience)
    }

    /// GET, from byte `from` on where the server can.
    pub fn get(&self, url: &str, from: u64, patience: Patience) -> Result<Reply, Failure> {
        self.send(url, false, (from > 0).then_some(from), patience)
    }

    /// GET of a JSON document; anything but 200 is a failure.
    pub fn json(&self, url: &str, patience: Patience) -> Result<(serde_json::Value, Option<String>), Failure> {
        let reply = self.get(url, 0, patience)?;
        let mut reply = check_status(reply, 200)?;
        let next = reply.last("link").and_then(next_link).map(|link| resolve_url(&reply.url, &link));
        let text = reply.body.with_config().limit(256 << 20).read_to_vec();
        let text = text.map_err(|e| Failure::new(Kind::Unreachable, url, format!("the reply broke off: {e}")))?;
        let value = serde_json::from_slice(&text)
            .map_err(|e| Failure::new(Kind::Wrong, url, format!("the reply is no JSON ({e}): {}", shown(&text))))?;
        Ok((value, next))
    }

    fn send(&self, url: &str, head: bool, from: Option<u64>, patience: Patience) -> Result<Reply, Failure> {
        let mut attempt = 0;
        loop {
            if self.progress.is_cancelled() {
                return Err(Failure::new(Kind::Cancelled, url, "interrupted"));
            }
            let (problem, kind, asked, refused) = match self.follow(url, head, from) {
                Ok(reply) if reply.status == 429 || (reply.status >= 500 && reply.status != 501) => {
                    (status_text(reply.status), Kind::Busy, reply.last("retry-after").and_then(seconds), false)
                }
                Ok(reply) => return Ok(reply),
                Err(Trouble::Failure(failure)) => return Err(failure),
                Err(Trouble::Ureq(e)) => {
                    use ureq::Error as E;
                    if matches!(e, E::BadUri(_) | E::Http(_) | E::InvalidProxyUrl) {
                        return Err(Failure::new(Kind::Wrong, url, e.to_string()));
                    }
                    // No name server, no route, nobody listening: what a connection that was there once does not say.
                    use std::io::ErrorKind as K;
                    let refused = match &e {
                        E::Io(e) => {
                            !matches!(e.kind(), K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe | K::UnexpectedEof | K::TimedOut)
                        }
                        E::HostNotFound | E::ConnectionFailed => true,
                        _ => false,
                    };
                    (e.to_string(), Kind::Unreachable, None, refused)
                }
            };
            let most = if refused && patience == Patience::Lookup { self.options.retries.min(1) } else { self.options.retries };
            if attempt >= most || asked.is_some_and(|w| w > LONGEST_WAIT) {
                let tries = attempt + 1;
                let asks = asked.map(|w| format!("; the server asks to wait {} s", w.as_secs())).unwrap_or_default();
                let times = if tries == 1 { String::new() } else { format!(" ({tries} attempts)") };
                return Err(Failure::new(kind, url, format!("{problem}{times}{asks}")));
            }
            self.wait(url, attempt, asked, &problem)?;
            attempt += 1;
        }
    }

    /// Waits before attempt number `attempt` + 2, and says so; Ctrl-C ends it.
    pub fn wait(&self, url: &str, attempt: u32, asked: Option<Duration>, problem: &str) -> Result<(), Failure> {
        let doubled = self.options.base_wait.saturating_mul(1 << attempt.min(16));
        // Many clients that failed together should not come back together.
        let jitter = doubled.mul_f64(0.25 * noise());
        let wait = asked.unwrap_or(doubled + jitter).min(LONGEST_WAIT);
        self.progress.warn(&format!("{url}: {problem}; trying again in {:.1} s", wait.as_secs_f64()));
        let until = Instant::now() + wait;
        loop {
            if self.progress.is_cancelled() {
                return Err(Failure::new(Kind::Cancelled, url, "interrupted"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// One request and its redirects.
    fn follow(&self, url: &str, head: bool, from: Option<u64>) -> Result<Reply, Trouble> {
        let mut at = url.to_string();
        let mut first: Option<HeaderMap> = None;
        for _ in 0..=MOST_REDIRECTS {
            let agent = self.proxied.as_ref().filter(|_| !self.goes_direct(&at)).unwrap_or(&self.direct);
            let mut request = if head { agent.head(&at) } else { agent.get(&at) };
            if let Some(token) = self.options.token.as_ref().filter(|_| origin(&at) == origin(&self.options.endpoint)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header("range", format!("bytes={from}-"));
            }
            let (parts, body) = request.call().map_err(Trouble::Ureq)?.into_parts();
            let status = parts.status.as_u16();
            let location = parts.headers.get("location").and_then(|l| l.to_str().ok());
            let Some(location) = location.filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308)) else {
                let first = first.unwrap_or_else(|| parts.headers.clone());
                return Ok(Reply { url: at, status, headers: parts.headers, first, body });
            };
            let next = resolve_url(&at, location);
            let known = ["x-linked-etag", "etag"].iter().any(|h| parts.headers.contains_key(*h));
            if head && known && parts.headers.contains_key("x-repo-commit") && origin(&next) != origin(&at) {
                // The hub has said all about a file that another host keeps.
                return Ok(Reply { url: at, status: 200, headers: parts.headers.clone(), first: parts.headers, body });
            }
            if origin(&at).starts_with("https://") && !origin(&next).starts_with("https://") {
                let problem = format!("redirected from https to {}", origin(&next));
                return Err(Trouble::Failure(Failure::new(Kind::Wrong, url, problem)));
            }
            first.get_or_insert(parts.headers);
            at = next;
        }
        Err(Trouble::Failure(Failure::new(Kind::Wrong, url, format!("more than {MOST_REDIRECTS} redirects"))))
    }

    fn goes_direct(&self, url: &str) -> bool {
        let authority = origin(url).split_once("://").map(|(_, a)| a.to_string()).unwrap_or_default();
        let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
        self.options.no_proxy.iter().any(|rule| {
            let rule = rule.trim().trim_start_matches('*');
            rule.is_empty()
                || host == rule
                || (host.ends_with(rule) && (rule.starts_with('.') || host[..host.len() - rule.len()].ends_with('.')))
        })
    }
}

/// Why one attempt gave no reply.
enum Trouble {
    /// The connection.
    Ureq(ureq::Error),
    /// Something that another attempt would not change.
    Failure(Failure),
}

/// The reply, if its status is the wanted one.
pub(super) fn check_status(reply: Reply, wanted: u16) -> Result<Reply, Failure> {
    let kind = match reply.status {
        s if s == wanted => return Ok(reply),
        404 | 410 => Kind::Missing,
        401 | 403 => Kind::Denied,
        _ => Kind::Wrong,
    };
    let mut failure = Failure::new(kind, &reply.url, status_text(reply.status));
    failure.code = reply.header("x-error-code").unwrap_or_default().to_string();
    if let Some(message) = reply.header("x-error-message").filter(|m| !m.is_empty()) {
        failure.problem = format!("{}: {message}", failure.problem);
    }
    Err(failure)
}

fn status_text(status: u16) -> String {
    let reason = ureq::http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("an unknown status");
    format!("the server answered {status} {reason}")
}

/// Retry-After in seconds; the form with a date is left to the doubling waits.
fn seconds(value: &str) -> Option<Duration> {
    value.trim().parse::<u64>().ok().map(Duration::from_secs)
}

/// From 0 to 1, different in every process and moment. No result depends on it.
fn noise() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1u64 << 53) as f64
}

/// Scheme, host and port.
pub(super) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |i| start + i);
    &url[..end]
}

/// What a Location or Link at `base` means.
fn resolve_url(base: &str, to: &str) -> String {
    if to.starts_with("http://") || to.starts_with("https://") {
        return to.to_string();
    }
    if to.starts_with("//") {
        let scheme = base.split_once("://").map_or("https", |(scheme, _)| scheme);
        return format!("{scheme}:{to}");
    }
    if to.starts_with('/') {
        return format!("{}{to}", origin(base));
    }
    let path = base.split(['?', '#']).next().unwrap_or(base);
    let folder = path.rfind('/').filter(|&i| i >= origin(base).len()).map_or(path, |i| &path[..i]);
    format!("{folder}/{to}")
}

/// The `rel="next"` of a Link header.
fn next_link(header: &str) -> Option<String> {
    header.split(',').find_map(|link| {
        let (url, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        parameters.replace([' ', '"'], "").contains("rel=next").then(|| url.to_string())
    })
}

/// The beginning of a reply, for a message.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
    format!("{:?}", text.trim())
}

/// A path or revision as part of a URL; slashes stay if `slashes`.
pub(super) fn quoted(text: &str, slashes: bool) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || (slashes && b == b'/');
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_put_together() {
        assert_eq!(origin("https://a.b:80/x?y"), "https://a.b:80");
        assert_eq!(origin("http://h"), "http://h");
        assert_eq!(resolve_url("http://h:1/a/b?q", "/c"), "http://h:1/c");
        assert_eq!(resolve_url("http://h:1/a/b?q=/", "c"), "http://h:1/a/c");
        assert_eq!(resolve_url("https://h/a", "//o/x"), "https://o/x");
        assert_eq!(resolve_url("http://h/a", "http://o/x"), "http://o/x");
        assert_eq!(next_link("<http://h/x?cursor=a%3D>; rel=\"next\"").as_deref(), Some("http://h/x?cursor=a%3D"));
        assert_eq!(next_link("<http://h/x>; rel=\"prev\""), None);
        assert_eq!(quoted("refs/convert/parquet", false), "refs%2Fconvert%2Fparquet");
        assert_eq!(quoted("a b/\u{e9}.json", true), "a%20b/%C3%A9.json");
        assert!(seconds("7") == Some(Duration::from_secs(7)) && seconds("Wed, 21 Oct 2015 07:28:00 GMT").is_none());
    }

    #[test]
    fn a_proxy_is_not_used_where_it_must_not() {
        let options = HubOptions { no_proxy: vec!["localhost".into(), ".example.org".into(), "127.0.0.1".into()], ..HubOptions::new("x") };
        let http = Http::new(options, Arc::new(crate::progress::Silent)).unwrap();
        for (url, direct) in [
            ("http://localhost:9/x", true),
            ("https://a.example.org/", true),
            ("http://127.0.0.1:1", true),
            ("https://notexample.org", false),
        ] {
            assert_eq!(http.goes_direct(url), direct, "{url}");
        }
    }
}
