//! Ends what goes round the agent to ports that have become STRICT (FEATURES A2), and remembers where that failed.

use std::os::fd::{AsFd, OwnedFd};

use heddle_abi::names;

use super::State;
use crate::diag::{Direct, Look};
use crate::enrol::{Enrolled, PodSpec};
use crate::error::DatapathError;

/// Connections of one pod that a report names.
const NAMED_MAX: usize = 5;

/// Whether handshakes that are not complete may be an application's, when a pod that was enrolled as `former` has become
/// stricter: some of them went round the agent.
pub(super) fn half_open_may_be_direct(former: &PodSpec) -> bool {
    former.fail_open || !former.exclude_inbound_ports.is_empty()
}

impl State {
    /// Ends the connections of a pod that go round the agent to STRICT ports. What cannot be ended is reported by
    /// [`State::inspect`] for as long as it is there.
    pub(super) fn end_direct(&mut self, uid: &str, half_open: bool) {
        let Some(pod) = self.pods.get(uid) else { return };
        if !pod.spec.strict && pod.spec.strict_except.is_empty() {
            self.unended.remove(uid);
            return;
        }
        let name = pod.spec.display();
        let ended = self.agent_sockets().and_then(|map| {
            let what = DatapathError::io(format!("pod {name}: end connections that go round the agent"));
            look(pod, half_open).end(&pod.netns, map.as_fd()).map_err(what)
        });
        match ended {
            Ok(0) => {}
            Ok(ended) => tracing::warn!(pod = name, ended, "connections that went round the agent to STRICT ports"),
            Err(error) => {
                tracing::error!(pod = name, %error, "not ended");
                self.unended.insert(uid.to_owned(), error.to_string());
                return;
            }
        }
        self.unended.remove(uid);
    }

    /// Pods with connections to STRICT ports that go round the agent and could not be ended.
    pub(super) fn unended_reports(&self) -> Vec<String> {
        let report = |(uid, why): (&String, &String)| {
            let pod = self.pods.get(uid)?;
            let map = self.agent_sockets().ok()?;
            let left = look(pod, false).list(&pod.netns, map.as_fd()).unwrap_or_default();
            told(&pod.spec.display(), &left, why)
        };
        self.unended.iter().filter_map(report).collect()
    }

    fn agent_sockets(&self) -> Result<OwnedFd, DatapathError> {
        self.kernel.pinned_map(names::AGENT_SOCKETS)
    }
}

fn look(pod: &Enrolled, half_open: bool) -> Look<'_> {
    Look { spec: &pod.spec, own: pod.addresses().collect(), half_open }
}

fn told(pod: &str, left: &[Direct], why: &str) -> Option<String> {
    let named: Vec<String> = left.iter().take(NAMED_MAX).map(Direct::to_string).collect();
    let more = if left.len() > NAMED_MAX { ", …" } else { "" };
    let count = left.len();
    (count > 0).then(|| {
        format!(
            "pod {pod}: {count} connections go round the agent to STRICT ports ({}{more}) and could not be ended: {why}",
            named.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_some_and_counts_all() {
        assert_eq!(told("shop/web", &[], "no such option"), None);
        let one = Direct::for_tests("10.9.0.1:5000", "10.1.0.1:80");
        assert_eq!(
            told("shop/web", std::slice::from_ref(&one), "not supported").expect("a report"),
            "pod shop/web: 1 connections go round the agent to STRICT ports (10.9.0.1:5000 → 10.1.0.1:80) and could not be \
             ended: not supported"
        );
        let many = told("shop/web", &vec![one; 7], "not supported").expect("a report");
        assert!(many.contains(": 7 connections") && many.contains("80, …)"), "{many}");
    }
}
