//! What the programs count, and the words metrics and CLI use for it.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal),+ $(,)?) => {
        /// Index into the counters map. Every verdict of a program has one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Counter { $($(#[doc = $doc])+ $name),+ }

        impl Counter {
            /// All counters, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// `<direction>_<verdict>_<reason>`, the label words of `heddle_datapath_connections_total`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }
        }
    };
}

counters! {
    /// connect() rewritten to the agent, IPv4 (also v4-mapped).
    OutboundCapturedV4 = "outbound_captured_ipv4",
    /// connect() rewritten to the agent, IPv6.
    OutboundCapturedV6 = "outbound_captured_ipv6",
    /// Loopback or unspecified destination.
    OutboundPassedLoopback = "outbound_passed_loopback",
    /// One of the pod's own addresses.
    OutboundPassedOwnAddress = "outbound_passed_own_address",
    /// fe80::/10.
    OutboundPassedLinkLocal = "outbound_passed_link_local",
    /// A permitted exclusion.
    OutboundPassedExcluded = "outbound_passed_excluded",
    /// No agent, failure policy Open.
    OutboundPassedAgentDown = "outbound_passed_agent_down",
    /// An agent port as target.
    OutboundRefusedAgentPort = "outbound_refused_agent_port",
    /// No agent, failure policy Closed.
    OutboundRefusedAgentDown = "outbound_refused_agent_down",
    /// Native IPv6 in a pod without an IPv6 listener, failure policy Open.
    OutboundPassedNoListener = "outbound_passed_no_listener",
    /// Native IPv6 in a pod without an IPv6 listener, failure policy Closed.
    OutboundRefusedNoListener = "outbound_refused_no_listener",
    /// Socket storage could not be had.
    OutboundRefusedNoStorage = "outbound_refused_no_storage",
    /// bind() to an agent port by an application.
    BindRefusedAgentPort = "bind_refused_agent_port",
    /// Handed to the agent's inbound listener, IPv4.
    InboundCapturedV4 = "inbound_captured_ipv4",
    /// Handed to the agent's inbound listener, IPv6.
    InboundCapturedV6 = "inbound_captured_ipv6",
    /// A permitted exclusion.
    InboundPassedExcluded = "inbound_passed_excluded",
    /// No agent, failure policy Open.
    InboundPassedAgentDown = "inbound_passed_agent_down",
    /// From outside to an agent port.
    InboundRefusedAgentPort = "inbound_refused_agent_port",
    /// No agent, failure policy Closed.
    InboundRefusedAgentDown = "inbound_refused_agent_down",
    /// To an address of the namespace that is not known as the pod's (link-local, or added after enrolment).
    InboundRefusedUnknownAddress = "inbound_refused_unknown_address",
    /// The listener's slot is empty or does not fit.
    InboundRefusedNoListener = "inbound_refused_no_listener",
    /// Records written.
    RecordWritten = "record_written",
    /// Records read and deleted by the accepting side.
    RecordConsumed = "record_consumed",
    /// Records that did not fit.
    RecordRefusedMapFull = "record_refused_map_full",
    /// True clients that could not be kept for want of memory: the application sees the pod's own address.
    RecordNotKept = "record_not_kept",
    /// Connections to the outbound listener without a record.
    RecordMissing = "record_missing",
    /// Handed to the agent's HBONE listener.
    InboundCapturedHbone = "inbound_captured_hbone",
    /// No agent, failure policy Open, to a STRICT port.
    InboundRefusedStrict = "inbound_refused_strict",
}

/// Slots of the counters map: room for newer programs under the same ABI.
pub const COUNTERS_MAX: usize = 64;

const _: () = assert!(Counter::ALL.len() <= COUNTERS_MAX);
