//! Any packet a client may send: decoded, parsed and planned without a panic.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use heddle_datapath::enrol::{Desired, Namespace, PodSpec, plan};
use heddle_proto::keeper::v1::{Reply, Request, request};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let _ = Reply::decode(bytes);
    let Ok(Request { request: Some(request::Request::SetPods(set)) }) = Request::decode(bytes) else {
        return;
    };
    let desired: Vec<Desired> = set
        .pods
        .into_iter()
        .filter_map(|pod| PodSpec::parse(pod).ok())
        .zip(0..)
        .map(|(spec, cookie)| Desired { spec, namespace: Namespace::Found(cookie) })
        .collect();
    let _ = plan(&desired, &BTreeSet::new(), &BTreeMap::new());
});
