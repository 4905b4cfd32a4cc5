//! What the debug API and the probes show: the snapshot's part from `admin`, the rest from link, proxy and node.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use heddle_admin::{ConnectionQuery, ExplainQuery, Health, ViewError, ViewFuture, Views, views};
use heddle_discovery::files::FilesStatus;
use heddle_model::{Snapshot, Workload};
use heddle_proto::debug::v1;
use heddle_proxy::{ConnectionView, Proxy};
use heddle_telemetry::PolicyMetrics;
use heddle_telemetry::time::rfc3339;
use tokio::sync::watch;

use super::identity::{self, Identities};
use super::link::Link;
use super::{metrics, policy_views, route_views};
use crate::cli::{AgentOptions, Source};
use crate::{VERSION, logging};

/// Options that views show.
pub struct Shown {
    node: String,
    source: String,
    cgroup: Option<PathBuf>,
}

impl AgentOptions {
    /// What views show of the options.
    pub fn shown(&self) -> Shown {
        let Source::Files(dir) = &self.source;
        Shown {
            node: self.node.clone(),
            source: format!("files:{}", dir.display()),
            cgroup: self.datapath.cgroup.clone(),
        }
    }
}

/// The agent's views.
pub struct AgentViews {
    /// Options.
    pub options: Arc<Shown>,
    /// Start.
    pub started: Instant,
    /// Keeper.
    pub link: Arc<Link>,
    /// Data plane.
    pub proxy: Arc<Proxy>,
    /// How often policies decided.
    pub policy: PolicyMetrics,
    /// State.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Source.
    pub source: watch::Receiver<FilesStatus>,
    /// Set when the agent drains.
    pub draining: Arc<AtomicBool>,
    /// Data-plane threads.
    pub workers: usize,
    /// Identities, where there are any.
    pub identities: Option<Arc<Identities>>,
}

impl AgentViews {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// State of capture of one pod: word and error.
    fn capture(&self, pod: &Workload) -> (&'static str, String) {
        if *pod.node != *self.options.node {
            return ("", String::new());
        }
        if !pod.wants_capture() {
            return ("not_in_mesh", String::new());
        }
        if pod.standalone.is_none() {
            return (
                "failed",
                format!("pod {}/{}: no standalone.heddle.dev/netns annotation", pod.namespace, pod.name),
            );
        }
        self.link.view(|view| match view.pods.get(pod.uid.as_str()) {
            Some(state) if state.enrolled => ("enrolled", state.reason.clone()),
            Some(state) => ("failed", state.reason.clone()),
            None if view.released => ("released", "freed by `heddle release --node`".to_owned()),
            None => ("pending", view.trouble.clone().unwrap_or_default()),
        })
    }

    fn source_error(&self) -> String {
        self.source.borrow().alarm.clone().unwrap_or_default()
    }

    async fn inspect(&self) -> Result<heddle_proto::keeper::v1::InspectReply, ViewError> {
        let link = Arc::clone(&self.link);
        tokio::task::spawn_blocking(move || link.inspect())
            .await
            .map_err(|error| ViewError::Unavailable(error.to_string()))?
            .map_err(|error| ViewError::Unavailable(error.to_string()))
    }
}

impl Health for AgentViews {
    fn not_live(&self) -> Vec<String> {
        self.proxy.health().err().map(|error| error.to_string()).into_iter().collect()
    }

    fn not_ready(&self) -> Vec<String> {
        let mut why = self.not_live();
        if self.draining.load(Ordering::Acquire) {
            why.push("draining".into());
        }
        self.link.view(|view| {
            if !view.attached {
                why.push(format!("not attached to the keeper: {}", view.trouble.as_deref().unwrap_or("not yet")));
            } else if !view.settled {
                why.push("pods are being enrolled".into());
            }
        });
        why
    }
}

impl Views for AgentViews {
    fn status(&self) -> ViewFuture<'_, v1::Status> {
        Box::pin(async move {
            let snapshot = self.snapshot();
            let open = self.proxy.registry().list(0, |_| true).await.total;
            let not_ready = self.not_ready();
            let uptime = self.started.elapsed();
            let started = SystemTime::now().checked_sub(uptime).unwrap_or(SystemTime::UNIX_EPOCH);
            let pods: Vec<_> = snapshot.workloads().map(|pod| self.capture(pod).0).collect();
            let count = |word: &str| pods.iter().filter(|state| **state == word).count() as u64;
            let (keeper_version, keeper_error) =
                self.link.view(|view| (view.keeper_version.clone(), view.trouble.clone().unwrap_or_default()));
            Ok(v1::Status {
                version: VERSION.into(),
                node: self.options.node.clone(),
                pid: std::process::id(),
                started: rfc3339(started),
                uptime_seconds: uptime.as_secs_f64(),
                ready: not_ready.is_empty(),
                not_ready,
                draining: self.draining.load(Ordering::Acquire),
                source: self.options.source.clone(),
                source_error: self.source_error(),
                snapshot_generation: snapshot.generation,
                workloads: snapshot.workloads().count() as u64,
                services: snapshot.services().count() as u64,
                invalid_objects: snapshot.invalid.len() as u64,
                pods_enrolled: count("enrolled"),
                pods_failed: count("failed"),
                connections_open: open as u64,
                workers: u32::try_from(self.workers).unwrap_or(u32::MAX),
                workers_dead: u32::from(self.proxy.health().is_err()),
                keeper_version,
                keeper_error,
                identity: self.identities.as_deref().map_or_else(|| identity::off().detail, Identities::summary),
            })
        })
    }

    fn workloads(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Workloads> {
        Box::pin(async move {
            let usage = self.proxy.pods();
            Ok(views::workloads(&self.snapshot(), namespace.as_deref(), |pod, view| {
                let (capture, error) = self.capture(pod);
                capture.clone_into(&mut view.capture);
                view.capture_error = error;
                if let Some(used) = usage.iter().find(|used| used.uid == pod.uid) {
                    view.connections = used.connections.into();
                    view.connections_refused = used.connections_refused;
                    view.requests = used.requests.into();
                    view.requests_refused = used.requests_refused;
                    view.buffered_bytes = used.buffered_bytes;
                    view.cpu_seconds = used.cpu.as_secs_f64();
                }
            }))
        })
    }

    fn services(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Services> {
        Box::pin(async move { Ok(views::services(&self.snapshot(), namespace.as_deref())) })
    }

    fn connections(&self, query: ConnectionQuery) -> ViewFuture<'_, v1::Connections> {
        Box::pin(async move {
            let pod = query.pod;
            let list = self
                .proxy
                .registry()
                .list(query.limit, move |c| pod.as_ref().is_none_or(|uid| c.pod.as_str() == uid))
                .await;
            let connections = list.connections.iter().map(connection).collect();
            Ok(v1::Connections { total: list.total as u64, connections })
        })
    }

    fn certs(&self) -> ViewFuture<'_, v1::Certificates> {
        Box::pin(async move { Ok(self.identities.as_deref().map(Identities::certificates).unwrap_or_default()) })
    }

    fn policies(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Policies> {
        Box::pin(async move {
            let (snapshot, node) = (self.snapshot(), &self.options.node);
            Ok(policy_views::policies(&snapshot, node, namespace.as_deref(), &self.policy))
        })
    }

    fn explain(&self, query: ExplainQuery) -> ViewFuture<'_, v1::Explanation> {
        Box::pin(async move {
            let served = self.proxy.pods().into_iter().filter(|pod| pod.attached).map(|pod| pod.uid).collect();
            let here = policy_views::Known {
                snapshot: &self.snapshot(),
                has_identities: self.identities.is_some(),
                pods: &served,
                usage: &|service, port| self.proxy.usage(service, port),
            };
            policy_views::explained(&here, &query)
        })
    }

    fn routes(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Routes> {
        Box::pin(async move { Ok(route_views::routes(&self.snapshot(), namespace.as_deref())) })
    }

    fn endpoints(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Endpoints> {
        Box::pin(async move {
            let usage = |service: &_, port| self.proxy.usage(service, port);
            Ok(route_views::endpoints(&self.snapshot(), namespace.as_deref(), usage))
        })
    }

    fn bpf(&self) -> ViewFuture<'_, v1::BpfView> {
        Box::pin(async move {
            let inspected = self.inspect().await?;
            let programs = inspected.programs.into_iter().map(|p| v1::BpfProgram {
                ok: p.id != 0 && !p.name.is_empty(),
                name: p.name,
                id: p.id,
                tag: p.tag,
                attached_to: if p.attached_to.contains("lookup-") {
                    p.attached_to.replace("links/lookup-", "netns ")
                } else {
                    inspected.cgroup.clone()
                },
                detail: p.attached_to,
            });
            let maps = inspected.maps.into_iter().map(|m| v1::BpfMap {
                name: m.name,
                id: m.id,
                kind: String::new(),
                entries: m.entries,
                entries_max: m.max_entries,
            });
            let mut rows: Vec<_> = inspected
                .pods
                .iter()
                .map(|pod| v1::BpfRow {
                    subject: format!("pod {}/{}", pod.namespace, pod.name),
                    told: "enrolled".into(),
                    in_kernel: if pod.enrolled {
                        format!("netns cookie {}", pod.netns_cookie)
                    } else {
                        pod.reason.clone()
                    },
                    ok: pod.enrolled,
                })
                .collect();
            rows.extend(inspected.discrepancies.iter().map(|found| v1::BpfRow {
                subject: "discrepancy".into(),
                told: String::new(),
                in_kernel: found.clone(),
                ok: false,
            }));
            let counters = self.link.counters().into_iter().map(|(word, count)| {
                let (verdict, reason) = metrics::split(word).map_or_else(
                    || (word.to_owned(), String::new()),
                    |(direction, verdict, reason)| (format!("{direction} {verdict}"), reason.to_owned()),
                );
                v1::BpfCounter { verdict, reason, count }
            });
            Ok(v1::BpfView {
                abi_version: heddle_abi::ABI_VERSION,
                programs: programs.collect(),
                maps: maps.collect(),
                rows,
                counters: counters.collect(),
            })
        })
    }

    fn check(&self) -> ViewFuture<'_, v1::CheckReport> {
        Box::pin(async move {
            let snapshot = self.snapshot();
            let mut items: Vec<v1::CheckItem> = heddle_datapath::node::requirements(self.options.cgroup.as_deref())
                .into_iter()
                .map(requirement)
                .collect();
            let inspected = self.inspect().await;
            if let Ok(inspected) = &inspected {
                items.extend(inspected.unended.iter().map(|found| v1::CheckItem {
                    name: "strict-ports".into(),
                    ok: false,
                    detail: found.clone(),
                    fix: "restart these clients or the pod, or use a kernel with CONFIG_INET_DIAG_DESTROY=y".into(),
                }));
            }
            items.push(match inspected {
                Ok(inspected) => v1::CheckItem {
                    name: "datapath".into(),
                    ok: inspected.discrepancies.is_empty(),
                    detail: if inspected.discrepancies.is_empty() {
                        format!("{} links, {} pods, as told", inspected.programs.len(), inspected.pods.len())
                    } else {
                        inspected.discrepancies.join("; ")
                    },
                    fix: if inspected.discrepancies.is_empty() {
                        String::new()
                    } else {
                        "restart the keeper: it makes the kernel's state what the agent asks for".into()
                    },
                },
                Err(error) => v1::CheckItem {
                    name: "keeper".into(),
                    ok: false,
                    detail: error.to_string(),
                    fix: "start `heddle keeper`, or restart the agent as root".into(),
                },
            });
            let source_error = self.source_error();
            items.push(v1::CheckItem {
                name: "source".into(),
                ok: source_error.is_empty(),
                detail: if source_error.is_empty() { self.options.source.clone() } else { source_error.clone() },
                fix: if source_error.is_empty() {
                    String::new()
                } else {
                    format!("make {} readable again; the last state stays in force", self.options.source)
                },
            });
            match &self.identities {
                Some(identities) => items.extend(identities.check()),
                None => items.push(identity::off()),
            }
            for pod in snapshot.workloads() {
                let (state, error) = self.capture(pod);
                if state == "failed" {
                    items.push(v1::CheckItem {
                        name: format!("pod {}/{}", pod.namespace, pod.name),
                        ok: false,
                        detail: error,
                        fix: "correct the pod, or take it out with the label heddle.dev/mesh: disabled (where a mode or a policy guards \
                              it, that counts only if its Namespace has the annotation heddle.dev/allow-exclusions: \"true\")"
                            .into(),
                    });
                }
            }
            let (objects, invalid) = views::invalid(&snapshot);
            items.push(objects);
            let warnings = views::warnings(&snapshot);
            Ok(v1::CheckReport { ok: items.iter().all(|item| item.ok), items, invalid, warnings })
        })
    }

    fn log_levels(&self) -> ViewFuture<'_, v1::LogLevels> {
        Box::pin(async { Ok(levels()) })
    }

    fn set_log_level(&self, level: v1::LogLevel) -> ViewFuture<'_, v1::LogLevels> {
        Box::pin(async move {
            logging::set(&level.target, &level.level).map_err(ViewError::Invalid)?;
            Ok(levels())
        })
    }
}

/// A requirement as a check item; the fix only where it is needed.
pub fn requirement(found: heddle_datapath::node::Requirement) -> v1::CheckItem {
    let fix = if found.ok { String::new() } else { found.fix.to_owned() };
    v1::CheckItem { name: found.name.into(), ok: found.ok, detail: found.detail, fix }
}

fn levels() -> v1::LogLevels {
    let levels = logging::levels().into_iter().map(|(target, level)| v1::LogLevel { target, level }).collect();
    v1::LogLevels { levels }
}

fn connection(c: &ConnectionView) -> v1::Connection {
    let name = |pod: &Option<Arc<Workload>>| {
        pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default()
    };
    v1::Connection {
        id: c.id,
        pod: c.pod.to_string(),
        direction: c.direction.as_str().into(),
        state: c.state.as_str().into(),
        client: c.client.to_string(),
        source: name(&c.source),
        original_destination: c.original_destination.map(|a| a.to_string()).unwrap_or_default(),
        service: c.service.as_ref().map(|(s, port)| format!("{}/{}:{port}", s.namespace, s.name)).unwrap_or_default(),
        destination: name(&c.destination),
        upstream: c.upstream.map(|a| a.to_string()).unwrap_or_default(),
        started: rfc3339(c.started),
        age_seconds: c.age.as_secs_f64(),
        bytes_sent: c.bytes_sent,
        bytes_received: c.bytes_received,
        worker: u32::try_from(c.worker).unwrap_or(u32::MAX),
        requests: c.requests,
        sni: c.sni.as_deref().unwrap_or_default().to_owned(),
        transport: c.transport.as_str().into(),
        source_principal: c.source_principal.to_string(),
        destination_principal: c.destination_principal.to_string(),
    }
}
