//! The inbound side. Without our kernel programs the original address is the listener's own, so the application takes that
//! address over while the connection waits for its socket.

use std::net::TcpListener as StdListener;
use std::sync::atomic::Ordering::SeqCst;

use heddle_model::PodUid;
use tokio::net::TcpListener;

use super::support::*;

#[tokio::test]
async fn the_application_is_dialled_at_the_original_address_with_the_true_client_published() {
    let mesh = Mesh::new(1);
    mesh.sockets.closed.store(true, SeqCst);
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    mesh.attach("a", vec![], vec![listener]).await;
    let mut client = connect(addr).await;
    let registry = mesh.proxy.registry();
    while registry.list(1, |_| true).await.total == 0 {
        tokio::task::yield_now().await;
    }
    // Detaching closes the listener; the connection goes on.
    mesh.proxy.detach(&PodUid::new("a")).await;
    let application = loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    mesh.sockets.closed.store(false, SeqCst);
    mesh.sockets.opened.notify_waiters();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    passes(&mut client, &mut server, b"to").await;
    passes(&mut server, &mut client, b"fro").await;
    assert_eq!(*mesh.sockets.published.lock().unwrap(), [client.local_addr().unwrap()]);
    let true_client = client.local_addr().unwrap().to_string();
    drop((client, server));
    let record = &mesh.records(1).await[0];
    assert_eq!(record["reporter"], "destination");
    assert_eq!(record["source_address"], true_client);
    assert_eq!(record["original_destination"], addr.to_string());
    assert_eq!(record["upstream_address"], addr.to_string());
    mesh.is_empty().await;
}

#[tokio::test]
async fn no_socket_in_time_is_a_reset_with_its_reason() {
    let mesh = Mesh::new(1);
    mesh.sockets.refuse.store(true, SeqCst);
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    mesh.attach("a", vec![], vec![listener]).await;
    is_refused(addr).await;
    assert_eq!(mesh.only_reason().await, "socket_unavailable");
}
