//! Connections to an authority: TLS over TCP under tonic's channel, and its errors in the identity room's words.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_identity::{HandshakeFailure, IssueError, IssueErrorKind, Retry};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::{ANSWER_TIMEOUT, CONNECT_TIMEOUT};

/// gRPC's name for "not before so many milliseconds" (gRPC proposal A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// gRPC over TLS is HTTP/2.
pub(super) const ALPN: &[u8] = b"h2";

/// `https://HOST:PORT`, checked.
#[derive(Clone, Debug)]
pub(super) struct Address {
    uri: Uri,
    host: String,
    port: u16,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let what = || format!("`{url}`: write https://HOST:PORT");
        let uri: Uri = url.parse().with_context(what)?;
        ensure!(uri.scheme_str() == Some("https"), what());
        ensure!(matches!(uri.path(), "" | "/") && uri.query().is_none(), what());
        let host = uri.host().with_context(what)?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().with_context(what)?;
        Ok(Self { uri, host, port })
    }

    /// The host as TLS wants it.
    pub(super) fn server_name(&self) -> Result<ServerName<'static>> {
        ServerName::try_from(self.host.clone()).with_context(|| format!("`{}` is no host name", self.host))
    }

    /// Connects on first use, and again when the connection was lost.
    pub(super) fn channel(&self, config: Arc<ClientConfig>, name: ServerName<'static>) -> Channel {
        let (host, port) = (self.host.clone(), self.port);
        let connector = tower::service_fn(move |_: Uri| {
            let (host, config, name) = (host.clone(), Arc::clone(&config), name.clone());
            async move { connect(&host, port, config, name).await.map(TokioIo::new) }
        });
        Endpoint::from(self.uri.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            // A connection into nowhere is given up before the call on it is, so that the next one makes another.
            .http2_keep_alive_interval(ANSWER_TIMEOUT / 3)
            .keep_alive_timeout(ANSWER_TIMEOUT / 3)
            .connect_with_connector_lazy(connector)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.uri)
    }
}

async fn connect(
    host: &str,
    port: u16,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(config).connect(name, stream).await
}

/// What became of a handshake, if that is what a call failed at.
pub(super) fn handshake_failure(status: &Status) -> Option<HandshakeFailure> {
    sources(status).find_map(|error| {
        let io = error.downcast_ref::<io::Error>()?;
        let inner = io.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(HandshakeFailure::of(inner))
    })
}

/// A call's failure as the certificate store wants it.
pub(super) fn issue_error(issuer: &str, status: &Status) -> IssueError {
    let (kind, retry) = match status.code() {
        Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented => {
            (IssueErrorKind::Refused, Retry::Hopeless)
        }
        Code::DeadlineExceeded | Code::Cancelled => (IssueErrorKind::Timeout, Retry::Backoff),
        _ => (IssueErrorKind::Unavailable, Retry::Backoff),
    };
    let retry = pushback(status).map_or(retry, Retry::After);
    let mut message = format!("{issuer}: {}", status.message());
    let mut last = status.message().to_owned();
    for error in sources(status) {
        let text = error.to_string();
        if !last.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        last = text;
    }
    IssueError::new(kind, message).with_retry(retry)
}

fn pushback(status: &Status) -> Option<Duration> {
    let milliseconds: u64 = status.metadata().get(PUSHBACK)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(milliseconds.min(600_000)))
}

fn sources(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |error| (*error).source())
}
