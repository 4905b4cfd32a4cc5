//! A directory of files while it changes: reload, atomicity, bad documents, a vanishing directory, many writers.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic in a test is its report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use heddle_discovery::{FilesSource, FilesStatus};
use heddle_model::{OriginalDst, Resolution, Snapshot};
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// A source that runs on a directory, and what it publishes.
struct Running {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    status: watch::Receiver<FilesStatus>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), heddle_discovery::FilesError>>,
}

impl Running {
    fn start(dir: &Path) -> Self {
        Self::run(FilesSource::open(dir, "a").unwrap())
    }

    /// With a quiet time that no busy machine stretches a batch beyond.
    fn start_patient(dir: &Path) -> Self {
        let source = FilesSource::open(dir, "a").unwrap();
        Self::run(source.with_quiet(Duration::from_millis(500), Duration::from_secs(10)))
    }

    fn run(source: FilesSource) -> Self {
        let status = source.status();
        let (sender, snapshots) = watch::channel(Arc::new(Snapshot::new("a")));
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(source.run(sender, async move { drop(stopped.await) }));
        Self { snapshots, status, stop, task }
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let wait = self.snapshots.wait_for(|snapshot| condition(snapshot));
        let found = tokio::time::timeout(Duration::from_secs(20), wait).await;
        let snapshot = found.unwrap_or_else(|_| panic!("not in 20 s: {what}")).unwrap();
        Arc::clone(&snapshot)
    }

    async fn until_status(&mut self, what: &str, condition: impl Fn(&FilesStatus) -> bool) -> FilesStatus {
        let wait = self.status.wait_for(|status| condition(status));
        let found = tokio::time::timeout(Duration::from_secs(20), wait).await;
        let status = found.unwrap_or_else(|_| panic!("not in 20 s: {what}")).unwrap();
        status.clone()
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), self.task).await.expect("stops").unwrap().unwrap();
    }
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

fn pod(name: &str, ip: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: n}}\nstatus: {{podIP: {ip}}}\n")
}

fn service(name: &str, vip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: n}}\nspec: {{clusterIP: {vip}, ports: [{{port: 80}}]}}\n"
    )
}

fn slice(service: &str, ip: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-1, namespace: n, labels: \
         {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [{ip}]}}]\n"
    )
}

/// Writes as one should: beside, then rename.
fn write(dir: &Path, name: &str, text: &str) {
    let beside = dir.join(format!(".{name}.tmp"));
    fs::write(&beside, text).unwrap();
    fs::rename(beside, dir.join(name)).unwrap();
}

fn pods(snapshot: &Snapshot) -> BTreeSet<String> {
    snapshot.workloads().map(|w| w.name.to_string()).collect()
}

fn has(names: &[&str]) -> impl Fn(&Snapshot) -> bool {
    let names: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
    move |snapshot| pods(snapshot) == names
}

fn freshly_loaded(dir: &Path) -> Arc<Snapshot> {
    FilesSource::open(dir, "a").unwrap().load().unwrap()
}

#[tokio::test]
async fn files_are_read_and_reloaded() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a.yaml", &pod("one", "10.1.0.1"));
    write(dir.path(), "b.yml", &[service("web", "10.96.0.1"), slice("web", "10.1.0.1")].join("---\n"));
    fs::write(dir.path().join("notes.txt"), pod("no", "10.1.0.9")).unwrap();
    fs::write(dir.path().join(".hidden.yaml"), pod("no", "10.1.0.9")).unwrap();
    fs::write(dir.path().join("a.yaml~"), pod("no", "10.1.0.9")).unwrap();
    fs::create_dir(dir.path().join("sub.yaml")).unwrap();
    let mut running = Running::start(dir.path());
    let snapshot = running.until("first load", has(&["one"])).await;
    let to = OriginalDst::new("10.96.0.1:80".parse().unwrap());
    let Resolution::Service { candidates, .. } = snapshot.resolve(None, to) else { panic!("a Service") };
    assert_eq!(candidates.endpoints[0].workload.as_ref().unwrap().name.to_string(), "one");

    write(dir.path(), "a.yaml", &pod("two", "10.1.0.1"));
    let snapshot = running.until("a renamed file", has(&["two"])).await;
    let Resolution::Service { candidates, .. } = snapshot.resolve(None, to) else { panic!("a Service") };
    assert_eq!(candidates.endpoints[0].workload.as_ref().unwrap().name.to_string(), "two");

    fs::write(dir.path().join("c.yaml"), pod("three", "10.1.0.3")).unwrap();
    running.until("a file written in place", has(&["two", "three"])).await;
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    running.until("a deleted file", has(&["three"])).await;
    fs::rename(dir.path().join("c.yaml"), dir.path().join("c.off")).unwrap();
    running.until("a file renamed away", has(&[])).await;
    std::os::unix::fs::symlink(dir.path().join("c.off"), dir.path().join("d.yaml")).unwrap();
    running.until("a link", has(&["three"])).await;
    let status = running.until_status("counts", |s| s.files == 2).await;
    assert_eq!((status.objects, status.invalid, status.alarm), (3, 0, None));
    running.stop().await;
}

#[tokio::test]
async fn a_batch_is_one_snapshot() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a.yaml", &pod("one", "10.1.0.1"));
    write(dir.path(), "b.yaml", &service("web", "10.96.0.1"));
    let mut running = Running::start_patient(dir.path());
    let before = running.until("first load", |s| s.service_count() == 1 && s.workload_count() == 1).await;
    // Gone and back within the quiet time: nobody may see it missing.
    let mut seen = running.snapshots.clone();
    let watching = tokio::spawn(async move {
        let mut all = Vec::new();
        while seen.changed().await.is_ok() {
            let snapshot = Arc::clone(&seen.borrow_and_update());
            all.push((snapshot.workload_count(), snapshot.service_count()));
        }
        all
    });
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    write(dir.path(), "a.yaml", &[pod("one", "10.1.0.1"), pod("two", "10.1.0.2")].join("---\n"));
    write(dir.path(), "b.yaml", &[service("web", "10.96.0.1"), service("api", "10.96.0.2")].join("---\n"));
    let after = running.until("both files", |s| s.service_count() == 2 && s.workload_count() == 2).await;
    assert_eq!(after.generation, before.generation + 1);
    running.stop().await;
    assert_eq!(watching.await.unwrap(), [(2, 2)]);
}

#[tokio::test]
async fn a_link_swap_as_of_a_config_map_is_one_snapshot() {
    let dir = TempDir::new().unwrap();
    let version = |number: &str, names: &[&str]| {
        let real = dir.path().join(format!("..{number}"));
        fs::create_dir(&real).unwrap();
        for (file, name) in ["a.yaml", "b.yaml"].iter().zip(names) {
            fs::write(real.join(file), pod(name, "10.1.0.1")).unwrap();
        }
        std::os::unix::fs::symlink(format!("..{number}"), dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    version("1", &["one", "two"]);
    for file in ["a.yaml", "b.yaml"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), dir.path().join(file)).unwrap();
    }
    let mut running = Running::start_patient(dir.path());
    let before = running.until("first load", has(&["one", "two"])).await;
    version("2", &["three", "four"]);
    let after = running.until("the swap", has(&["three", "four"])).await;
    assert_eq!(after.generation, before.generation + 1);
    running.stop().await;
}

#[tokio::test]
async fn a_bad_document_is_reported_and_harms_no_other() {
    let dir = TempDir::new().unwrap();
    let bad = service("web", "10.96.0.1").replace("port: 80", "port: 0");
    write(
        dir.path(),
        "a.yaml",
        &[pod("one", "10.1.0.1"), bad, "kind: [\n".to_owned(), pod("two", "10.1.0.2")].join("---\n"),
    );
    let mut running = Running::start(dir.path());
    let snapshot = running.until("first load", has(&["one", "two"])).await;
    let told: Vec<String> = snapshot.invalid.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], "a.yaml:9: Service n/web: spec.ports[0].port: 0 is no port: 1 to 65535");
    assert!(told[1].starts_with("a.yaml:11:  : not YAML"), "{told:?}");
    let to = OriginalDst::new("10.96.0.1:80".parse().unwrap());
    assert_eq!(snapshot.resolve(None, to).refusal(), Some(heddle_model::Refusal::InvalidObject));
    write(dir.path(), "a.yaml", &service("web", "10.96.0.1"));
    let snapshot = running.until("mended", |s| s.invalid.is_empty()).await;
    assert_eq!(snapshot.resolve(None, to).refusal(), Some(heddle_model::Refusal::NoReadyEndpoint));
    running.stop().await;
}

/// What an object that cannot be read any more said before holds, as long as there is something that may be it.
#[tokio::test]
async fn an_object_that_cannot_be_read_stays_what_it_was() {
    let meshed = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {heddle.dev/mesh: enabled}}\n";
    let dir = TempDir::new().unwrap();
    let good = [pod("one", "10.1.0.1"), pod("two", "10.1.0.2")].join("---\n");
    write(dir.path(), "a.yaml", &good);
    write(dir.path(), "namespace.yaml", meshed);
    let mut running = Running::start(dir.path());
    let is_whole = |snapshot: &Snapshot| {
        let mut pods: Vec<_> =
            snapshot.workloads().map(|w| format!("{} {:?} {}", w.name, w.addresses, w.wants_capture())).collect();
        pods.sort();
        pods == ["one [10.1.0.1] true", "two [10.1.0.2] true"]
    };
    running.until("first load", is_whole).await;
    let stays = |snapshot: &Snapshot, what: &str| {
        let told = snapshot.invalid.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        told.contains(&format!("{what}: cannot be read, or be told from what cannot")) && is_whole(snapshot)
    };
    let broken = |text: &str| [&*pod("one", "10.1.0.1"), text].join("---\n");
    for text in [
        "kind: [",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: two, namespace: n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: two, namespace: n}\nspec: 7\n",
        "apiVersion: v1\nkind: Pdo\nmetadata: {name: two, namespace: n}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {namespace: n}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: two, namespace: n, annotations: {standalone.heddle.dev/netns: two}}\n",
    ] {
        write(dir.path(), "a.yaml", &broken(text));
        running.until(text, |snapshot| stays(snapshot, "Pod n/two")).await;
        // Twice broken is not gone.
        write(dir.path(), "a.yaml", &broken(&format!("{text}# once more")));
        running.until(text, |snapshot| stays(snapshot, "Pod n/two")).await;
        write(dir.path(), "a.yaml", &good);
        running.until("mended", |snapshot| snapshot.invalid.is_empty() && is_whole(snapshot)).await;
    }
    write(dir.path(), "a.yaml", "kind: [");
    running.until("both", |snapshot| stays(snapshot, "Pod n/one")).await;
    write(dir.path(), "a.yaml", &good);
    for text in ["kind: [", "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {heddle.dev/mesh: true}}\n"] {
        write(dir.path(), "namespace.yaml", text);
        running.until(text, |snapshot| stays(snapshot, "Namespace n")).await;
    }
    // What is gone is gone, and so it is of what was never known.
    write(dir.path(), "a.yaml", &pod("one", "10.1.0.1"));
    running.until("removed", has(&["one"])).await;
    write(dir.path(), "a.yaml", "# nothing\n");
    running.until("emptied", has(&[])).await;
    running.stop().await;
    write(dir.path(), "a.yaml", &broken("kind: ["));
    assert_eq!(pods(&freshly_loaded(dir.path())).len(), 1);
}

#[tokio::test]
async fn modes_are_in_force_as_their_files_change() {
    let modes = |name: &str, spec: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: MeshTLS\nmetadata: {{name: {name}, namespace: n}}\nspec: {{{spec}}}\n"
        )
    };
    let mesh = |mode: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
        )
    };
    let is = |wanted: &'static str| {
        move |snapshot: &Snapshot| {
            let pod = snapshot.workloads().next();
            pod.is_some_and(|pod| pod.mtls.of(80, &snapshot.mesh).as_str() == wanted)
        }
    };
    let dir = TempDir::new().unwrap();
    let meshed = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {heddle.dev/mesh: enabled}}\n";
    write(dir.path(), "a.yaml", &[meshed, &pod("one", "10.1.0.1")].join("---\n"));
    let mut running = Running::start(dir.path());
    running.until("the default", is("Permissive")).await;
    write(dir.path(), "m.yaml", &modes("m", "mode: Strict"));
    running.until("a new object", is("Strict")).await;
    write(dir.path(), "m.yaml", &modes("m", "ports: [{port: 80, mode: Disabled}]"));
    let snapshot = running.until("an edited object", is("Disabled")).await;
    assert_eq!((snapshot.invalid.len(), snapshot.warnings.len()), (0, 0));
    write(dir.path(), "o.yaml", &modes("o", "ports: [{port: 80, mode: Permissive}]"));
    let snapshot = running.until("a stricter one beside it", is("Permissive")).await;
    assert_eq!(
        snapshot.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "m.yaml:1: MeshTLS n/m: spec.ports[0].mode: `Disabled` is not in force for pods that MeshTLS n/o speaks for too: \
          of several the strictest counts, here `Permissive`"
        ]
    );
    fs::remove_file(dir.path().join("o.yaml")).unwrap();
    write(dir.path(), "m.yaml", &modes("m", "mode: Disbaled"));
    let snapshot = running.until("a rejected one", is("Strict")).await;
    assert_eq!(
        snapshot.invalid.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["m.yaml:4: MeshTLS n/m: spec.mode: `Disbaled` is unknown: `Strict` or `Permissive` or `Disabled`"]
    );
    fs::remove_file(dir.path().join("m.yaml")).unwrap();
    running.until("none", is("Permissive")).await;
    write(dir.path(), "mesh.yaml", &mesh("Strict"));
    running.until("the mesh's", is("Strict")).await;
    running.stop().await;
}

#[tokio::test]
async fn an_object_in_two_files_is_taken_from_one_by_rule() {
    let dated = |created: &str, ip: &str| {
        pod("one", ip).replace("namespace: n", &format!("namespace: n, creationTimestamp: {created}"))
    };
    let dir = TempDir::new().unwrap();
    write(dir.path(), "b.yaml", &pod("one", "10.1.0.2"));
    let mut running = Running::start(dir.path());
    let address = |s: &Snapshot| s.workloads().next().map(|w| w.addresses[0].to_string()).unwrap_or_default();
    running.until("first load", |s| address(s) == "10.1.0.2").await;
    write(dir.path(), "a.yaml", &format!("# moved\n{}", pod("one", "10.1.0.1")));
    let snapshot = running.until("the first file by name", |s| address(s) == "10.1.0.1").await;
    let told: Vec<String> = snapshot.invalid.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["b.yaml:1: Pod n/one: is already in a.yaml:2, which counts: keep one"]);
    write(dir.path(), "c.yaml", &dated("2026-01-01T00:00:00Z", "10.1.0.3"));
    running.until("a dated one before undated ones", |s| address(s) == "10.1.0.3").await;
    write(dir.path(), "d.yaml", &dated("2025-01-01T00:00:00Z", "10.1.0.4"));
    let snapshot = running.until("the oldest", |s| address(s) == "10.1.0.4").await;
    assert_eq!(snapshot.invalid.len(), 3);
    for name in ["d.yaml", "a.yaml", "c.yaml"] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    running.until("what is left", |s| address(s) == "10.1.0.2" && s.invalid.is_empty()).await;
    running.stop().await;
}

#[tokio::test]
async fn the_last_state_outlives_its_directory() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("objects");
    let away = parent.path().join("away");
    fs::create_dir(&dir).unwrap();
    write(&dir, "a.yaml", &pod("one", "10.1.0.1"));
    let mut running = Running::start(&dir);
    let before = running.until("first load", has(&["one"])).await;
    fs::rename(&dir, &away).unwrap();
    let status = running.until_status("an alarm", |s| s.alarm.is_some()).await;
    assert!(status.alarm.unwrap().contains("the last state stays in force"));
    assert!(before.same_state(&running.snapshots.borrow()));
    // A change in what was moved away is none of ours.
    write(&away, "a.yaml", &pod("stranger", "10.1.0.1"));
    // Another directory in its place.
    fs::create_dir(&dir).unwrap();
    write(&dir, "a.yaml", &pod("two", "10.1.0.2"));
    running.until("the directory's return", has(&["two"])).await;
    running.until_status("the end of the alarm", |s| s.alarm.is_none()).await;
    write(&dir, "b.yaml", &pod("three", "10.1.0.3"));
    running.until("the new directory is watched", has(&["two", "three"])).await;
    // Replaced without a gap.
    let next = parent.path().join("next");
    fs::create_dir(&next).unwrap();
    write(&next, "a.yaml", &pod("four", "10.1.0.4"));
    fs::rename(&dir, parent.path().join("old")).unwrap();
    fs::rename(&next, &dir).unwrap();
    running.until("another directory by rename", has(&["four"])).await;
    running.stop().await;
}

#[tokio::test]
async fn a_directory_behind_a_link_is_followed_when_the_link_changes() {
    let parent = TempDir::new().unwrap();
    let (one, two, link) = (parent.path().join("1"), parent.path().join("2"), parent.path().join("link"));
    for (dir, name) in [(&one, "one"), (&two, "two")] {
        fs::create_dir(dir).unwrap();
        write(dir, "a.yaml", &pod(name, "10.1.0.1"));
    }
    std::os::unix::fs::symlink(&one, &link).unwrap();
    let mut running = Running::start(&link);
    running.until("first load", has(&["one"])).await;
    std::os::unix::fs::symlink(&two, parent.path().join("tmp")).unwrap();
    fs::rename(parent.path().join("tmp"), &link).unwrap();
    running.until("the other directory", has(&["two"])).await;
    running.stop().await;
}

#[tokio::test]
async fn what_an_unreadable_file_said_stays_in_force() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a.yaml", &pod("one", "10.1.0.1"));
    let mut running = Running::start(dir.path());
    running.until("first load", has(&["one"])).await;
    // A link to itself cannot be read, whoever tries.
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    std::os::unix::fs::symlink("a.yaml", dir.path().join("a.yaml")).unwrap();
    let snapshot = running.until("a report", |s| !s.invalid.is_empty()).await;
    assert!(snapshot.invalid[0].to_string().contains("a.yaml:0:  : cannot be read"), "{}", snapshot.invalid[0]);
    assert!(has(&["one"])(&snapshot));
    write(dir.path(), "a.yaml", &pod("two", "10.1.0.1"));
    running.until("readable again", |s| s.invalid.is_empty() && has(&["two"])(s)).await;
    running.stop().await;
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let dir = PathBuf::from("/nonexistent/heddle");
    let error = FilesSource::open(&dir, "a").unwrap_err().to_string();
    assert!(error.starts_with("cannot read the directory /nonexistent/heddle: No such file"), "{error}");
}

#[test]
fn an_unchanged_directory_makes_no_new_snapshot() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a.yaml", &format!("{}---\nkind: [\n", pod("one", "10.1.0.1")));
    let mut source = FilesSource::open(dir.path(), "a").unwrap();
    let first = source.load().unwrap();
    write(dir.path(), "a.yaml", &format!("{}---\nkind: [\n", pod("one", "10.1.0.1")));
    assert!(Arc::ptr_eq(&first, &source.load().unwrap()), "rewritten with the same content");
}

#[tokio::test]
async fn writers_at_once_end_in_what_a_fresh_load_sees() {
    const WRITERS: usize = 4;
    const ROUNDS: usize = 60;
    let dir = TempDir::new().unwrap();
    let mut running = Running::start(dir.path());
    let writer = |number: usize| {
        let dir = dir.path().to_owned();
        std::thread::spawn(move || {
            for round in 0..ROUNDS {
                let ip = format!("10.{number}.{round}.1");
                // Own files, and one that all fight over.
                let own =
                    [pod(&format!("p{number}-{}", round % 5), &ip), slice(&format!("s{number}"), &ip)].join("---\n");
                write(&dir, &format!("own-{number}-{}.yaml", round % 3), &own);
                let beside = dir.join(format!(".{number}"));
                fs::write(&beside, [service("shared", "10.96.0.1"), slice("shared", &ip)].join("---\n")).unwrap();
                fs::rename(&beside, dir.join("shared.yaml")).unwrap();
                if round % 7 == 0 {
                    fs::remove_file(dir.join(format!("own-{number}-{}.yaml", round % 3))).unwrap();
                }
            }
        })
    };
    let writers: Vec<_> = (0..WRITERS).map(writer).collect();
    tokio::task::spawn_blocking(move || writers.into_iter().for_each(|w| w.join().unwrap())).await.unwrap();
    let expected = freshly_loaded(dir.path());
    assert!(expected.workload_count() >= WRITERS);
    running.until("the state of a fresh load", |s| s.same_state(&expected)).await;
    running.stop().await;
}

#[tokio::test]
async fn ten_thousand_objects_reload_to_what_a_fresh_load_sees() {
    const SERVICES: usize = 2_500;
    let dir = TempDir::new().unwrap();
    let file = |from: usize, to: usize, shift: usize| -> String {
        let of = |i: usize| {
            let ip = |i: usize| format!("10.{}.{}.1", 1 + i / 250, i % 250);
            let moved = (i + shift) % SERVICES;
            [
                pod(&format!("p{i}"), &ip(i)),
                service(&format!("s{i}"), &format!("10.{}.{}.2", 100 + i / 250, i % 250)),
                slice(&format!("s{i}"), &ip(moved)),
                namespace(&format!("n{i}")),
            ]
            .join("---\n")
        };
        (from..to).map(of).collect::<Vec<_>>().join("---\n")
    };
    for from in (0..SERVICES).step_by(100) {
        write(dir.path(), &format!("{from:05}.yaml"), &file(from, from + 100, 0));
    }
    let mut running = Running::start(dir.path());
    running.until("10,000 objects", |s| s.workload_count() == SERVICES && s.service_count() == SERVICES).await;
    let status = running.until_status("counts", |s| s.files == 25).await;
    assert_eq!((status.objects, status.invalid), (4 * SERVICES, 0));
    for from in (0..SERVICES).step_by(500) {
        write(dir.path(), &format!("{from:05}.yaml"), &file(from, from + 100, 7));
    }
    fs::remove_file(dir.path().join("00100.yaml")).unwrap();
    let expected = freshly_loaded(dir.path());
    assert_eq!(expected.workload_count(), SERVICES - 100);
    running.until("the state of a fresh load", |s| s.same_state(&expected)).await;
    running.stop().await;
}
