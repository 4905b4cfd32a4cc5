//! What honest agents get.

use std::time::Duration;

use heddle_controller::ca::names;
use heddle_identity::WorkloadKey;
use heddle_proto::ca::v1::GetBundleRequest;
use tonic::Code;

use crate::client::{Running, certified, domain, id, pod, sign, sign_node, snapshot, until};

#[tokio::test]
async fn a_token_brings_certificates_for_accounts_on_that_node() {
    let running = Running::start().await;
    let mut client = running.client(None);
    let credential = sign(&mut client, &id("web"), Some(&running.token_a)).await.unwrap();
    assert_eq!(credential.facts().id, id("web"));
    let validity = credential.facts().validity;
    let life = validity.not_after - validity.not_before;
    assert_eq!(life, Duration::from_secs(3660), "an hour as asked for, and a minute back");
    sign(&mut client, &id("api"), Some(&running.token_b)).await.unwrap();
}

#[tokio::test]
async fn a_node_certificate_takes_the_place_of_the_token() {
    let running = Running::start().await;
    let node = running.node_certificate(&running.token_a).await;
    let mut client = running.client(Some(node));
    sign(&mut client, &id("web"), None).await.unwrap();
    // Renewed over itself.
    let key = WorkloadKey::generate().unwrap();
    let answer = sign_node(&mut client, &key, None).await.unwrap();
    assert_eq!(answer.node, "node-a");
    let mut renewed = running.client(Some(certified(key, answer.chain)));
    sign(&mut renewed, &id("web"), None).await.unwrap();
    let denied = sign(&mut renewed, &id("api"), None).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied:?}");
}

#[tokio::test]
async fn a_pod_that_is_not_known_yet_is_worth_asking_again() {
    let running = Running::start().await;
    let mut client = running.client(None);
    let refused = sign(&mut client, &id("late"), Some(&running.token_a)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "2000");
    assert!(refused.message().contains("no pod of spiffe://td/ns/shop/sa/late is known on node node-a"));
    running.pods.send_replace(snapshot([pod("late-1", "late", "node-a")]));
    until("the new pod's account gets its certificate", || {
        let (mut client, token) = (client.clone(), running.token_a.clone());
        async move { sign(&mut client, &id("late"), Some(&token)).await.is_ok() }
    })
    .await;
    // And the pod that is gone lends its name no more.
    assert_eq!(sign(&mut client, &id("web"), Some(&running.token_a)).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_bundle_is_told_to_anybody() {
    let running = Running::start().await;
    let answer = running.client(None).get_bundle(GetBundleRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.trust_domain, "td");
    assert_eq!(answer.roots, [running.roots().certificates()[0].to_vec()]);
}

#[tokio::test]
async fn it_stops_when_told_to_with_connections_open() {
    let running = Running::start().await;
    let mut client = running.client(None);
    sign(&mut client, &id("web"), Some(&running.token_a)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), running.stop()).await.unwrap();
    assert!(client.get_bundle(GetBundleRequest {}).await.is_err());
}

#[test]
fn ids_of_the_control_plane() {
    assert_eq!(names::agent_id(&domain()).unwrap().as_str(), "spiffe://td/ns/heddle-system/sa/agent");
    assert_eq!(names::authority_id(&domain()).unwrap().as_str(), "spiffe://td/ns/heddle-system/sa/ca");
}
