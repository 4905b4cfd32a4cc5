//! Measures the file source: loading 10,000 objects, and one endpoint change from parsed file to published snapshot.
//! Prints one JSON object per line, `{"metric": …, "unit": "ms", "value": …}`, medians of several rounds; run it in
//! release. `cargo xtask bench` calls it.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_discovery::FilesSource;
use heddle_model::{OriginalDst, Resolution};

const OBJECTS: usize = 10_000;
const LOADS: usize = 5;
const CHANGES: usize = 201;

/// One Namespace per hundred objects; a Service with its slice per two pods.
fn write_objects(dir: &Path, per_file: usize) -> std::io::Result<()> {
    let mut documents = Vec::with_capacity(OBJECTS);
    for i in 0..OBJECTS / 100 {
        documents.push(format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: n{i}\n  labels:\n    heddle.dev/mesh: enabled\n"
        ));
    }
    let mut i = 0;
    while documents.len() < OBJECTS {
        documents.push(pod(2 * i));
        documents.push(pod(2 * i + 1));
        documents.push(service(i));
        documents.push(slice(i, true));
        i += 1;
    }
    for (number, chunk) in documents.chunks(per_file).enumerate() {
        std::fs::write(dir.join(format!("{number:05}.yaml")), chunk.join("---\n"))?;
    }
    Ok(())
}

fn ip(i: usize) -> String {
    format!("10.{}.{}.{}", i / 62_500, i / 250 % 250, 1 + i % 250)
}

fn pod(i: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web-{i}\n  namespace: n{}\n  uid: 00000000-0000-0000-0000-{i:012}\n  \
         creationTimestamp: 2026-01-01T00:00:00Z\n  labels:\n    app: web\n    version: v1\nspec:\n  nodeName: node-{}\n  \
         serviceAccountName: web\n  containers:\n  - name: web\n    image: registry.example/web:1\n    ports:\n    - containerPort: 8080\n\
         status:\n  phase: Running\n  podIP: {ip}\n  podIPs:\n  - ip: {ip}\n",
        i % 100,
        i % 50,
        ip = ip(i)
    )
}

fn service(i: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web-{i}\n  namespace: n{}\nspec:\n  clusterIP: 172.{}.{}.{}\n  \
         selector:\n    app: web\n  ports:\n  - name: http\n    port: 80\n    targetPort: 8080\n",
        i % 100,
        16 + i / 62_500,
        i / 250 % 250,
        1 + i % 250
    )
}

fn slice(i: usize, ready: bool) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{i}-abcde\n  namespace: n{}\n  labels:\n    \
         kubernetes.io/service-name: web-{i}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\nendpoints:\n",
        i % 100
    );
    for pod in [2 * i, 2 * i + 1] {
        let _ = write!(
            text,
            "- addresses: [{}]\n  conditions:\n    ready: {ready}\n  nodeName: node-{}\n  targetRef:\n    kind: Pod\n    name: web-{pod}\n",
            ip(pod),
            pod % 50
        );
    }
    text
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |t| t.as_secs_f64() * 1e3)
}

fn report(metric: &str, times: Vec<Duration>) {
    println!("{{\"metric\":\"{metric}\",\"unit\":\"ms\",\"value\":{:.4}}}", median(times));
}

fn load(metric: &str, per_file: usize) -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    write_objects(dir.path(), per_file)?;
    let mut times = Vec::new();
    for _ in 0..LOADS {
        let started = Instant::now();
        let mut source = FilesSource::open(dir.path(), "node-1")?;
        let snapshot = source.load()?;
        times.push(started.elapsed());
        let objects = source.status().borrow().objects;
        if objects != OBJECTS || !snapshot.invalid.is_empty() {
            return Err(format!("{objects} objects, {} invalid", snapshot.invalid.len()).into());
        }
    }
    report(metric, times);
    Ok(())
}

/// One endpoint of one Service changes among all objects, in memory: from the parsed file to the snapshot, and to a
/// reader's first decision on it.
fn change() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    write_objects(dir.path(), 100)?;
    let mut reducer = heddle_discovery::Reducer::new();
    let mut snapshot = heddle_model::Snapshot::new("node-1");
    for entry in std::fs::read_dir(dir.path())? {
        for item in heddle_api::read("f", &std::fs::read(entry?.path())?).items {
            reducer.set(&item.object.key(), Some(Arc::new(item.object)));
        }
    }
    snapshot = snapshot.apply(reducer.delta());
    let (publisher, reader) = tokio::sync::watch::channel(Arc::new(snapshot));
    let to = OriginalDst::new("172.16.0.8:80".parse()?);
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let reading = heddle_api::read("f", slice(7, round % 2 == 1).as_bytes());
        let started = Instant::now();
        for item in reading.items {
            reducer.set(&item.object.key(), Some(Arc::new(item.object)));
        }
        let next = publisher.borrow().apply(reducer.delta());
        publisher.send_replace(Arc::new(next));
        let resolved = reader.borrow().resolve(None, to);
        times.push(started.elapsed());
        if matches!(resolved, Resolution::Service { .. }) != (round % 2 == 1) {
            return Err(format!("round {round}: {resolved:?}").into());
        }
    }
    report("discovery_endpoint_change", times);
    Ok(())
}

/// The same through the directory: a file of a hundred objects rewritten, read, parsed and published.
fn reload() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    write_objects(dir.path(), 100)?;
    let mut source = FilesSource::open(dir.path(), "node-1")?;
    source.load()?;
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let documents: Vec<String> = (0..100).map(|i| slice(i, (round + i) % 2 == 0)).collect();
        std::fs::write(dir.path().join(".next"), documents.join("---\n"))?;
        std::fs::rename(dir.path().join(".next"), dir.path().join("00000-first.yaml"))?;
        let started = Instant::now();
        source.load()?;
        times.push(started.elapsed());
    }
    report("discovery_reload_file_of_100", times);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    load("discovery_load_10000_objects_100_files", 100)?;
    load("discovery_load_10000_objects_10000_files", 1)?;
    load("discovery_load_10000_objects_1_file", OBJECTS)?;
    change()?;
    reload()
}
