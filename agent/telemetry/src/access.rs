//! The access record, one per request or opaque connection and side, and its way out: a bounded queue to one writer thread.
//!
//! Workers never wait for the disk or for a reader of stdout: when the queue is full the record is dropped and counted.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use prometheus::core::Collector;
use serde::{Serialize, Serializer};

use crate::collect::{FamilyDesc, FnCollector};
use crate::labels::Reporter;
use crate::reason::Reason;
use crate::time::rfc3339;
use crate::via::Via;

/// Records waiting for the writer thread before new ones are dropped.
pub const QUEUE_MAX: usize = 4096;

const WRITTEN: FamilyDesc =
    FamilyDesc::counter("heddle_access_log_records_total", "Access records, by fate.", &["fate"]);
const QUEUE: FamilyDesc =
    FamilyDesc::gauge("heddle_access_log_queue", "Access records waiting to be written.", &["bound"]);

/// The families this module exposes.
pub const FAMILIES: [FamilyDesc; 2] = [WRITTEN, QUEUE];

/// One line of the access log. Empty names are unknown.
#[derive(Clone, Debug, Serialize)]
pub struct AccessRecord {
    /// When the connection was accepted, or the request began (RFC 3339, UTC).
    #[serde(serialize_with = "as_rfc3339")]
    pub start_time: SystemTime,
    /// From there to the end, milliseconds.
    #[serde(serialize_with = "as_millis", rename = "duration_ms")]
    pub duration: Duration,
    /// Node of the agent that writes.
    pub node: Arc<str>,
    /// Which side's agent writes: `source` or `destination`.
    #[serde(serialize_with = "as_reporter")]
    pub reporter: Reporter,
    /// Why it ended.
    pub reason: Reason,
    /// Envoy's response flags for the reason.
    pub response_flags: &'static str,
    /// Caller: true client address and port.
    pub source_address: SocketAddr,
    /// Caller: namespace.
    pub source_namespace: Arc<str>,
    /// Caller: pod.
    pub source_pod: Arc<str>,
    /// Caller: owning workload.
    pub source_workload: Arc<str>,
    /// What the application asked for; absent if the kernel had no record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_destination: Option<SocketAddr>,
    /// `name.namespace.svc.<domain>:<port>` of the Service, empty if none.
    pub destination_service: Arc<str>,
    /// Called: namespace.
    pub destination_namespace: Arc<str>,
    /// Called: pod.
    pub destination_pod: Arc<str>,
    /// Called: owning workload.
    pub destination_workload: Arc<str>,
    /// Address dialled last; absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_address: Option<SocketAddr>,
    /// Attempts made upstream: those of a request to a Service, else connections that were dialled.
    pub attempts: u32,
    /// Bytes from destination to source.
    pub bytes_sent: u64,
    /// Bytes from source to destination.
    pub bytes_received: u64,
    /// Number of the connection in this agent, as in `heddle connections`.
    pub connection_id: u64,
    /// What carried it between the two pods.
    pub transport: Via,
    /// SPIFFE id the caller proved, empty if it proved none.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub source_principal: Arc<str>,
    /// SPIFFE id of the called side: proved to the caller, or this side's own.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub destination_principal: Arc<str>,
    /// Server name a TLS client asked for in the clear.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub sni: Box<str>,
    /// The request, if the connection carried HTTP; `bytes_*` are then the sizes of its bodies.
    #[serde(flatten)]
    pub http: Option<HttpFields>,
    /// What policies said, if any was asked.
    #[serde(flatten)]
    pub policy: Option<Box<PolicyFields>>,
}

/// What policies said of a request or connection. Policies are told as `namespace/name`, with the number of the rule in brackets; where it
/// follows from no single one, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyFields {
    /// What the decision follows from.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub policy: Box<str>,
    /// What it would have been refused for, if what is only tried (`dryRun`) were in force.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub policy_would_deny: Box<str>,
    /// Audit rules that matched, separated by commas.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub policy_audit: Box<str>,
}

/// What only a request has. Empty texts are unknown or were not sent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HttpFields {
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`, as the client spoke it.
    pub protocol: &'static str,
    /// Method.
    pub method: Box<str>,
    /// Host and port as the client named them.
    pub authority: Box<str>,
    /// Path and query.
    pub path: Box<str>,
    /// Status sent to the client, 0 if none was.
    pub status: u16,
    /// gRPC status, where one was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u8>,
    /// `user-agent`.
    pub user_agent: Box<str>,
    /// `x-request-id`.
    pub request_id: Box<str>,
    /// The rule of a route that it matched, as `HTTPRoute/namespace/name/number`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub route: Box<str>,
    /// The rule of HTTP that a malformed message broke.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub detail: &'static str,
}

fn as_rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

fn as_millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    // Whole microseconds, so that the text is short and exact.
    serializer.serialize_f64(duration.as_micros() as f64 / 1000.0)
}

fn as_reporter<S: Serializer>(reporter: &Reporter, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reporter.as_str())
}

enum Message {
    Record(Box<AccessRecord>),
    Close,
}

struct Inner {
    queue: Option<SyncSender<Message>>,
    queued: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    ended: Mutex<bool>,
    ended_signal: Condvar,
}

/// Where access records go. Cloning shares the queue.
#[derive(Clone)]
pub struct AccessLog(Arc<Inner>);

impl AccessLog {
    /// Writes nothing; [`AccessLog::enabled`] is false, so no record is even made.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(Inner::new(None)))
    }

    /// One JSON object per line to standard output.
    ///
    /// # Errors
    /// If the writer thread cannot be started.
    pub fn stdout() -> io::Result<Self> {
        Self::to(io::stdout(), QUEUE_MAX)
    }

    /// One JSON object per line, appended to a file that is created if missing (mode 0666 less umask).
    ///
    /// # Errors
    /// If the file cannot be opened or the writer thread cannot be started.
    pub fn file(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Self::to(file, QUEUE_MAX)
    }

    /// To any writer, with room for `queue_max` records.
    ///
    /// # Errors
    /// If the writer thread cannot be started.
    pub fn to(writer: impl Write + Send + 'static, queue_max: usize) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(queue_max);
        let inner = Arc::new(Inner::new(Some(sender)));
        let shared = Arc::downgrade(&inner);
        thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            let mut output = BufWriter::with_capacity(64 << 10, writer);
            write_all(&receiver, &mut output, |count| {
                if let Some(inner) = shared.upgrade() {
                    count(&inner);
                }
            });
            if let Some(inner) = shared.upgrade() {
                *inner.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
                inner.ended_signal.notify_all();
            }
        })?;
        Ok(Self(inner))
    }

    /// Whether records are wanted at all.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.0.queue.is_some()
    }

    /// Hands a record over; never blocks.
    pub fn log(&self, record: AccessRecord) {
        let Some(queue) = &self.0.queue else { return };
        self.0.queued.fetch_add(1, Relaxed);
        if queue.try_send(Message::Record(Box::new(record))).is_err() {
            self.0.queued.fetch_sub(1, Relaxed);
            self.0.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Waits until everything logged before is written and flushed, at most `wait`. False if it was not: a reader that
    /// does not read must not keep the agent from ending.
    #[must_use]
    pub fn close(&self, wait: Duration) -> bool {
        let Some(queue) = &self.0.queue else { return true };
        let deadline = Instant::now() + wait;
        let mut message = Message::Close;
        loop {
            match queue.try_send(message) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => message = back,
                Err(TrySendError::Full(_)) => return false,
            }
            thread::sleep(Duration::from_millis(1));
        }
        let ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        let (ended, _) = self
            .0
            .ended_signal
            .wait_timeout_while(ended, left, |ended| !*ended)
            .unwrap_or_else(PoisonError::into_inner);
        *ended
    }

    /// What the registry scrapes.
    #[must_use]
    pub fn collector(&self) -> Box<dyn Collector> {
        let log = self.clone();
        FnCollector::boxed(&FAMILIES, move || {
            let mut fates = WRITTEN.family();
            fates.push(&["written"], log.0.written.load(Relaxed) as f64);
            fates.push(&["dropped"], log.0.dropped.load(Relaxed) as f64);
            fates.push(&["failed"], log.0.failed.load(Relaxed) as f64);
            let mut queue = QUEUE.family();
            queue.push(&["used"], log.0.queued.load(Relaxed) as f64);
            queue.push(&["max"], if log.enabled() { QUEUE_MAX as f64 } else { 0.0 });
            vec![fates, queue]
        })
    }
}

impl Inner {
    fn new(queue: Option<SyncSender<Message>>) -> Self {
        Self {
            queue,
            queued: AtomicU64::new(0),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            ended: Mutex::new(false),
            ended_signal: Condvar::new(),
        }
    }
}

/// The writer thread: encodes, writes, and flushes whenever the queue is empty.
fn write_all(receiver: &Receiver<Message>, output: &mut impl Write, count: impl Fn(&dyn Fn(&Inner))) {
    let mut unflushed = 0u64;
    loop {
        let message = match receiver.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Empty) => {
                flush(output, &mut unflushed, &count);
                match receiver.recv() {
                    Ok(message) => message,
                    Err(_) => break,
                }
            }
            Err(TryRecvError::Disconnected) => break,
        };
        let Message::Record(record) = message else { break };
        let done = serde_json::to_writer(&mut *output, &record).map_err(io::Error::from);
        let done = done.and_then(|()| output.write_all(b"\n"));
        if done.is_ok() {
            unflushed += 1;
        }
        count(&|inner| {
            inner.queued.fetch_sub(1, Relaxed);
            if done.is_err() {
                inner.failed.fetch_add(1, Relaxed);
            }
        });
    }
    flush(output, &mut unflushed, &count);
}

/// A record counts as written once it left our buffer.
fn flush(output: &mut impl Write, unflushed: &mut u64, count: &impl Fn(&dyn Fn(&Inner))) {
    let records = std::mem::take(unflushed);
    if records == 0 {
        return;
    }
    let done = output.flush();
    count(&|inner| {
        let counter = if done.is_ok() { &inner.written } else { &inner.failed };
        counter.fetch_add(records, Relaxed);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::UNIX_EPOCH;

    fn record(id: u64) -> AccessRecord {
        AccessRecord {
            start_time: UNIX_EPOCH,
            duration: Duration::from_micros(1500),
            node: "a".into(),
            reporter: Reporter::Source,
            reason: Reason::UpstreamReset,
            response_flags: Reason::UpstreamReset.response_flags(),
            source_address: "10.0.0.1:4000".parse().unwrap(),
            source_namespace: "shop".into(),
            source_pod: "web-1".into(),
            source_workload: "web".into(),
            original_destination: Some("[fd00::1]:80".parse().unwrap()),
            destination_service: "db.shop.svc.cluster.local:80".into(),
            destination_namespace: "".into(),
            destination_pod: "".into(),
            destination_workload: "".into(),
            upstream_address: None,
            attempts: 2,
            bytes_sent: 7,
            bytes_received: 8,
            connection_id: id,
            transport: Via::Plain,
            source_principal: "".into(),
            destination_principal: "".into(),
            sni: "".into(),
            http: None,
            policy: None,
        }
    }

    #[test]
    fn a_record_is_one_json_line_with_stable_names() {
        let json = serde_json::to_string(&record(9)).unwrap();
        assert_eq!(
            json,
            "{\"start_time\":\"1970-01-01T00:00:00.000000Z\",\"duration_ms\":1.5,\"node\":\"a\",\"reporter\":\"source\",\
             \"reason\":\"upstream_reset\",\"response_flags\":\"UC\",\"source_address\":\"10.0.0.1:4000\",\
             \"source_namespace\":\"shop\",\"source_pod\":\"web-1\",\"source_workload\":\"web\",\
             \"original_destination\":\"[fd00::1]:80\",\"destination_service\":\"db.shop.svc.cluster.local:80\",\
             \"destination_namespace\":\"\",\"destination_pod\":\"\",\"destination_workload\":\"\",\"attempts\":2,\
             \"bytes_sent\":7,\"bytes_received\":8,\"connection_id\":9,\"transport\":\"plain\"}"
        );
    }

    #[test]
    fn a_request_has_fields_of_its_own() {
        let http = HttpFields {
            protocol: "HTTP/1.1",
            method: "GET".into(),
            path: "/a?b=\"".into(),
            status: 503,
            route: "HTTPRoute/shop/web/0".into(),
            ..HttpFields::default()
        };
        let json = serde_json::to_string(&AccessRecord { http: Some(http), ..record(9) }).unwrap();
        let fields = ",\"connection_id\":9,\"transport\":\"plain\",\"protocol\":\"HTTP/1.1\",\"method\":\"GET\",\"authority\":\"\",\
            \"path\":\"/a?b=\\\"\",\"status\":503,\"user_agent\":\"\",\"request_id\":\"\",\"route\":\"HTTPRoute/shop/web/0\"}";
        assert!(json.ends_with(fields), "{json}");
    }

    #[test]
    fn close_writes_everything_logged_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog::file(&path).unwrap();
        for id in 0..1000 {
            log.log(record(id));
        }
        assert!(log.close(Duration::from_secs(10)));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1000);
        assert_eq!(log.0.written.load(Relaxed), 1000);
    }

    /// A writer that blocks until it is allowed to go on, like a pipe nobody reads.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_costs_records_not_time() {
        let (go_on, wait) = mpsc::channel();
        let log = AccessLog::to(Stuck(wait), 4).unwrap();
        for id in 0..1000 {
            log.log(record(id));
        }
        let dropped = log.0.dropped.load(Relaxed);
        assert!(dropped > 0, "a queue of 4 took 1000 records of a stuck writer");
        assert!(!log.close(Duration::from_millis(20)), "close cannot succeed while the writer is stuck");
        drop(go_on);
        assert!(log.close(Duration::from_secs(10)));
        let fates = log.0.written.load(Relaxed) + log.0.dropped.load(Relaxed) + log.0.failed.load(Relaxed);
        assert_eq!(fates, 1000);
    }
}
