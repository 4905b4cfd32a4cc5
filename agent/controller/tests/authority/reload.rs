//! What changes under a running authority.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use heddle_controller::ca::Step;
use heddle_identity::{Roots, WorkloadKey};
use rustls::pki_types::CertificateDer;

use crate::client::{Running, id, sign, sign_csr, unix_now, until};

/// Who signed last, and what is to be trusted.
async fn told(running: &Running) -> (Vec<u8>, usize) {
    let key = WorkloadKey::generate().unwrap();
    let csr = key.certificate_request(&id("web")).unwrap();
    let answer = sign_csr(&mut running.client(None), csr, Some(&running.token_a)).await.unwrap();
    (answer.chain[1].clone(), answer.roots.len())
}

#[tokio::test]
async fn a_rotation_is_taken_up_step_by_step() {
    let running = Running::start().await;
    let mut kept = running.client(None);
    let at_first = sign(&mut kept, &id("web"), Some(&running.token_a)).await.unwrap();
    let (old, roots) = told(&running).await;
    assert_eq!(roots, 1);
    for (step, roots) in [(Step::Prepare, 2), (Step::Activate, 2), (Step::Finish, 1)] {
        running.directory.rotate(step, None, unix_now(), true).unwrap();
        until("the step is taken up", || async {
            let (signer, told) = told(&running).await;
            told == roots && (signer == old) == (step == Step::Prepare)
        })
        .await;
        // Connections of before go on.
        sign(&mut kept, &id("web"), Some(&running.token_a)).await.unwrap();
    }
    let roots: Vec<CertificateDer<'static>> = running.roots().certificates().to_vec();
    assert_ne!(Roots::new(roots).unwrap(), **at_first.roots());
}

#[tokio::test]
async fn a_token_made_now_counts_now() {
    let running = Running::start().await;
    let token = running.directory.issue_token("node-c", unix_now()).unwrap();
    running.pods.send_modify(|pods| *pods = crate::client::snapshot([crate::client::pod("c", "web", "node-c")]));
    until("the new node is served", || {
        let (mut client, token) = (running.client(None), token.clone());
        async move { sign(&mut client, &id("web"), Some(&token)).await.is_ok() }
    })
    .await;
}

/// What was in the way lies in another file than those that say that something changed.
#[tokio::test]
async fn a_revocation_that_could_not_be_taken_in_at_first_is_taken_in_later() {
    let running = Running::start().await;
    told(&running).await;
    let key = running.directory.path().join("g1/intermediate-key.pem");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    running.directory.revoke_token("node-a").unwrap();
    tokio::time::sleep(heddle_controller::ca::server::RELOAD_INTERVAL * 3).await;
    assert!(running.directory.load().is_err(), "the control: it cannot be read");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let csr = || WorkloadKey::generate().unwrap().certificate_request(&id("web")).unwrap();
    until("the revoked token counts no more", || async {
        let answer = sign_csr(&mut running.client(None), csr(), Some(&running.token_a)).await;
        answer.is_err_and(|status| status.code() == tonic::Code::Unauthenticated)
    })
    .await;
}

#[tokio::test]
async fn a_state_that_cannot_be_read_changes_nothing() {
    let running = Running::start().await;
    let (signer, _) = told(&running).await;
    let path = running.directory.path().join("state.json");
    let good = fs::read(&path).unwrap();
    fs::write(&path, "{").unwrap();
    tokio::time::sleep(heddle_controller::ca::server::RELOAD_INTERVAL * 3).await;
    assert!(running.directory.load().is_err(), "the control: it is broken");
    let key = WorkloadKey::generate().unwrap();
    let csr = key.certificate_request(&id("web")).unwrap();
    // The clients' own roots come from the directory as well: put it back for them.
    fs::write(&path, good).unwrap();
    let answer = sign_csr(&mut running.client(None), csr, Some(&running.token_a)).await.unwrap();
    assert_eq!(answer.chain[1], signer);
}
