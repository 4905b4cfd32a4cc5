//! The certificate authority of a mesh: `heddle ca serve` on a host of its own, which every node reaches over the fabric.
//!
//! Its root is an [`Authority`] of the test, so that a test can sign what the product's CA would not: see [`Ca::issue`].

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::node::Answer;
use crate::pki::{Authority, Claims, Credential};
use crate::place::Place;
use crate::process::Process;
use crate::wait::wait_for;

/// Where it listens.
const PORT: u16 = 15012;
/// How long it may take to serve, or to end.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The certificate authority of a mesh.
#[derive(Debug)]
pub struct Ca {
    place: Place,
    heddle: PathBuf,
    directory: PathBuf,
    credentials: PathBuf,
    source: PathBuf,
    authority: Authority,
    server: Mutex<Option<Process>>,
}

impl Ca {
    /// `heddle ca init` below `directory`, from a root of the test's. It does not serve yet.
    pub(crate) fn create(
        place: Place,
        heddle: &Path,
        directory: &Path,
        source: &Path,
        init_arguments: &[String],
    ) -> anyhow::Result<Self> {
        let (own, given) = (directory.join("ca"), directory.join("ca-root"));
        let credentials = directory.join("credentials");
        for directory in [&given, &credentials] {
            fs::create_dir(directory).with_context(|| format!("create {}", directory.display()))?;
        }
        // A peer of a test, whoever it runs as, reads what it is given here.
        fs::set_permissions(&credentials, fs::Permissions::from_mode(0o755)).context("permissions")?;
        let authority = Authority::new("test root")?;
        let (root, key) = authority.write_root(&given)?;
        let ca = Self {
            place,
            heddle: heddle.to_owned(),
            directory: own,
            credentials,
            source: source.to_owned(),
            authority,
            server: Mutex::new(None),
        };
        let (root, key) = (root.display().to_string(), key.display().to_string());
        let own = ["init", "--from-root-cert", &root, "--from-root-key", &key];
        let more: Vec<&str> = init_arguments.iter().map(String::as_str).collect();
        ca.run(&[&own, &more[..]].concat())?;
        Ok(ca)
    }

    /// The host it runs on.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its `--dir`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.place.v4(), PORT)
    }

    /// The root it was made from, with the power to sign anything under it.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Signs what `claims` say under the mesh's root, past the product's CA.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn issue(&self, name: &str, claims: &Claims) -> anyhow::Result<Credential> {
        self.authority.issue(&self.credentials, name, claims)
    }

    /// Where credentials of tests are written; readable by everybody.
    #[must_use]
    pub fn credentials(&self) -> &Path {
        &self.credentials
    }

    /// Serves; returns when it accepts connections.
    ///
    /// # Errors
    /// It does not come up; the error shows its output.
    pub fn start(&self) -> anyhow::Result<()> {
        let mut command = self.command(&["serve"]);
        command.arg("--source").arg(format!("files:{}", self.source.display()));
        command.arg("--listen").arg(self.address().to_string());
        let server = self.place.spawn("ca", command)?;
        let up = wait_for("the certificate authority accepts", TIMEOUT, || {
            if let Some(status) = server.status() {
                bail!("it has ended: {status}");
            }
            let connected = self.place.netns.inside(|| TcpStream::connect_timeout(&self.address(), TIMEOUT))?;
            Ok(connected.ok().map(drop))
        })
        .with_context(|| server.tail());
        self.server().replace(server);
        up
    }

    /// `SIGKILL`: nobody answers from now on.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.server().take().context("the certificate authority does not run")?.kill();
        Ok(())
    }

    /// `SIGTERM`; it must end well.
    ///
    /// # Errors
    /// It does not run, or ends otherwise.
    pub fn stop(&self) -> anyhow::Result<()> {
        let server = self.server().take().context("the certificate authority does not run")?;
        let status = server.terminate(TIMEOUT)?;
        ensure!(status.success(), "the certificate authority ended with {status}\n{}", server.tail());
        Ok(())
    }

    /// One step of `heddle ca rotate`; what it printed.
    ///
    /// # Errors
    /// It refuses.
    pub fn rotate(&self, arguments: &[&str]) -> anyhow::Result<String> {
        Ok(self.run(&[&["rotate"], arguments].concat())?.stdout)
    }

    /// Runs `heddle ca <command> --dir …`; it must succeed.
    ///
    /// # Errors
    /// It fails; the error shows its output.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Answer> {
        let answer = self.try_run(arguments)?;
        ensure!(answer.status.success(), "heddle ca {arguments:?}: {}\n{}", answer.status, answer.stderr);
        Ok(answer)
    }

    /// Runs `heddle ca <command> --dir …`, whatever comes of it.
    ///
    /// # Errors
    /// It cannot be started or does not end in time.
    pub fn try_run(&self, arguments: &[&str]) -> anyhow::Result<Answer> {
        let process = self.place.spawn("ca-cli", self.command(arguments))?;
        process.close_stdin();
        let status = process.wait(TIMEOUT).with_context(|| format!("heddle ca {arguments:?}"))?;
        Ok(Answer { status, stdout: process.stdout(), stderr: process.stderr() })
    }

    /// The end of its output, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        self.server().as_ref().map_or_else(|| "(no certificate authority runs)".to_owned(), Process::tail)
    }

    /// A token file for a node, and the arguments with which its agent uses it.
    pub(crate) fn admit(&self, node: &str, directory: &Path) -> anyhow::Result<Vec<String>> {
        let token = directory.join(format!("{node}-ca-token"));
        fs::write(&token, self.run(&["token", "--node", node])?.stdout).context("write the token")?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).context("permissions of the token")?;
        let root = directory.join(format!("{node}-ca-root.pem"));
        fs::write(&root, self.authority.root_pem()).context("write the root")?;
        let url = format!("https://{}", self.address());
        let arguments =
            ["--ca", &url, "--ca-root", &root.to_string_lossy(), "--ca-token-file", &token.to_string_lossy()];
        Ok(arguments.map(ToOwned::to_owned).to_vec())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.heddle);
        command.arg("ca").args(arguments).arg("--dir").arg(&self.directory);
        command
    }

    fn server(&self) -> MutexGuard<'_, Option<Process>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Its addresses on the fabric: below those of hosts outside the cluster.
pub(crate) fn addresses() -> Vec<IpAddr> {
    vec![[203, 0, 113, 9].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 9].into()]
}
