//! The inbound side. Without our kernel programs the original address is the listener's own, so the application takes that
//! address over while the connection waits for its socket.

use std::net::TcpListener as StdListener;
use std::sync::atomic::Ordering::SeqCst;

use heddle_model::PodUid;
use tokio::net::TcpListener;

use super::mesh::CALLED;
use super::support::*;
use crate::Config;

#[tokio::test]
async fn the_application_is_dialled_at_the_original_address_with_the_true_client_published() {
    let mesh = Mesh::with(Config { socket_wait: PATIENCE, ..Config::default() });
    mesh.sockets.closed.store(true, SeqCst);
    let listener = StdListener::bind((CALLED.as_str(), 0)).unwrap();
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

/// An inbound listener's address taken over by an application, while the connections made before go on.
async fn application(mesh: &Mesh, clients: usize) -> (TcpListener, Vec<tokio::net::TcpStream>) {
    mesh.sockets.closed.store(true, SeqCst);
    let listener = StdListener::bind((CALLED.as_str(), 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    mesh.attach("a", vec![], vec![listener]).await;
    let mut all = Vec::new();
    for _ in 0..clients {
        all.push(connect(addr).await);
    }
    let registry = mesh.proxy.registry();
    while registry.list(1, |_| true).await.total < clients {
        tokio::task::yield_now().await;
    }
    mesh.proxy.detach(&PodUid::new("a")).await;
    let application = loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    mesh.sockets.closed.store(false, SeqCst);
    mesh.sockets.opened.notify_waiters();
    (application, all)
}

#[tokio::test]
async fn connections_to_the_application_are_each_clients_own() {
    let mesh = Mesh::with(Config { socket_wait: PATIENCE, ..Config::default() });
    let (application, mut clients) = application(&mesh, 2).await;
    let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(soon(application.accept()).await.unwrap().0);
    }
    // Which server is whose.
    soon(tokio::io::AsyncWriteExt::write_all(&mut clients[0], get)).await.unwrap();
    let (mut one, mut two) = ([0; 1], [0; 1]);
    let first = tokio::select! {
        _ = servers[0].peek(&mut one) => 0,
        _ = servers[1].peek(&mut two) => 1,
    };
    let mut got = [0; 64];
    assert_eq!(soon(tokio::io::AsyncReadExt::read(&mut servers[first], &mut got)).await.unwrap(), get.len());
    passes(&mut servers[first], &mut clients[0], ok).await;
    for (client, server) in [(0, first), (1, 1 - first), (0, first), (1, 1 - first)] {
        passes(&mut clients[client], &mut servers[server], get).await;
        passes(&mut servers[server], &mut clients[client], ok).await;
    }
    let published = mesh.sockets.published.lock().unwrap().clone();
    assert_eq!(published.len(), 2, "one connection for each client: {published:?}");
    // The application's connection ends with its client's.
    clients.remove(0);
    assert_eq!(rest(&mut servers[first]).await, b"");
    passes(&mut clients[0], &mut servers[1 - first], get).await;
}
