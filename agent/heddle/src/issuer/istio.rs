//! An authority that speaks Istio's certificate service: istiod, or our own.
//!
//! It is known by its host name, as Istio's agents do it; the node by the token in every call. Roots come last in the answer.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use heddle_identity::provider::provider;
use heddle_identity::{
    CertificateIssuer, CertificateRequest, IssueError, IssueErrorKind, IssuedCertificate, Issuing, Roots,
};
use heddle_proto::istio::auth::IstioCertificateRequest;
use heddle_proto::istio::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use pem::{EncodeConfig, LineEnding, Pem};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, version};
use tonic::Request;
use tonic::transport::Channel;

use super::channel::{ALPN, Address, issue_error};
use super::{ANSWER_BYTES_MAX, CaFiles, CaOptions};

type Client = IstioCertificateServiceClient<Channel>;

/// In the request's metadata: whom a node's agent asks for.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// Asks an authority that speaks `istio.v1.auth`.
pub struct IstioIssuer {
    address: Address,
    server_name: ServerName<'static>,
    files: CaFiles,
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    client: Option<Client>,
    /// Roots of the last answer; the file's count as well.
    roots: Option<Arc<Roots>>,
}

impl IstioIssuer {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// A URL that is none, by name.
    pub fn new(options: &CaOptions) -> Result<Self> {
        let address = Address::parse(&options.url)?;
        Ok(Self {
            server_name: address.server_name()?,
            address,
            files: options.files.clone(),
            connection: Mutex::default(),
        })
    }

    fn client(&self) -> Result<Client> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &connection.client {
            return Ok(client.clone());
        }
        let mut store = RootCertStore::empty();
        for certificate in self.files.roots.roots(connection.roots.as_deref())?.certificates() {
            store.add(certificate.clone()).context("root")?;
        }
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13])?;
        let mut config = builder.with_root_certificates(store).with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        let channel = self.address.channel(Arc::new(config), self.server_name.clone());
        let client = Client::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        connection.client = Some(client.clone());
        Ok(client)
    }

    /// A connection trusts the roots it was made with: new ones, new connection.
    fn learned(&self, roots: &[CertificateDer<'static>]) {
        let Ok(roots) = Roots::new(roots.to_vec()) else { return };
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.roots.as_deref() != Some(&roots) {
            *connection = Connection { client: None, roots: Some(Arc::new(roots)) };
        }
    }

    async fn ask(&self, request: &CertificateRequest) -> Result<IssuedCertificate, IssueError> {
        let mut client = self.client().map_err(|error| IssueError::new(IssueErrorKind::Local, format!("{error:#}")))?;
        let identity = Value { kind: Some(Kind::StringValue(request.id.as_str().to_owned())) };
        let mut call = Request::new(IstioCertificateRequest {
            csr: pem::encode_config(
                &Pem::new("CERTIFICATE REQUEST", &request.csr[..]),
                EncodeConfig::new().set_line_ending(LineEnding::LF),
            ),
            validity_duration: i64::try_from(request.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), identity)].into() }),
        });
        call.metadata_mut().insert("authorization", self.files.token.bearer());
        match client.create_certificate(call).await {
            Ok(answer) => {
                let issued = read_chain(&answer.into_inner().cert_chain).map_err(|why| {
                    IssueError::new(IssueErrorKind::BadAnswer, format!("{}: cert_chain: {why}", self.name()))
                })?;
                self.learned(&issued.roots);
                Ok(issued)
            }
            Err(status) => {
                // A certificate that was not accepted: the file may have changed since.
                self.connection.lock().unwrap_or_else(PoisonError::into_inner).client = None;
                Err(issue_error(&self.name(), &status))
            }
        }
    }
}

impl CertificateIssuer for IstioIssuer {
    fn issue<'a>(&'a self, request: &'a CertificateRequest) -> Issuing<'a> {
        Box::pin(self.ask(request))
    }

    fn name(&self) -> String {
        format!("authority {} (istio)", self.address)
    }
}

/// The leaf first, the roots last: during a rotation several in one text.
fn read_chain(texts: &[String]) -> Result<IssuedCertificate, String> {
    let [chain @ .., roots] = texts else { return Err("is empty".into()) };
    let read = |text: &String| {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        certificates.map_err(|error| error.to_string())
    };
    let mut leaf_first = Vec::new();
    for text in chain {
        leaf_first.extend(read(text)?);
    }
    Ok(IssuedCertificate { chain: leaf_first, roots: read(roots)? })
}
