//! The YAML objects of the stand-alone source, written the way the contract wants: whole files, by rename.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::topology::{NamespacePlan, PodPlan, ServicePlan};

/// The directory given to `--source files:`.
#[derive(Clone, Debug)]
pub struct Source {
    directory: PathBuf,
}

/// Where a pod of a started mesh is.
pub(crate) struct PodLocation<'a> {
    pub(crate) node: &'a str,
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) netns: &'a Path,
    pub(crate) cgroup: &'a Path,
}

/// One endpoint of a service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Pod name.
    pub pod: String,
    /// Pod namespace.
    pub namespace: String,
    /// Node name.
    pub node: String,
    /// Its addresses, of one or both families.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
}

impl Source {
    pub(crate) fn create(directory: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// A copy of it as it is now, beside it: for an agent that hears of nothing any more.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn copy(&self, name: &str) -> anyhow::Result<Self> {
        let copy = Self::create(self.directory.with_file_name(name))?;
        fs::set_permissions(copy.directory(), fs::Permissions::from_mode(0o755)).context("permissions")?;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            fs::copy(entry.path(), copy.directory.join(entry.file_name())).context("copy an object")?;
        }
        Ok(copy)
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a file as it is, by rename.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_text(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let (new, path) = (self.directory.join(format!(".{file}.new")), self.directory.join(file));
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("rename to {}", path.display()))
    }

    /// Writes objects into one file, by rename.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, file: &str, objects: &[Value]) -> anyhow::Result<()> {
        let text: Vec<String> = objects.iter().map(yaml).collect();
        self.write_text(file, &text.join("---\n"))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove(&self, file: &str) -> anyhow::Result<()> {
        let path = self.directory.join(file);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Writes a Namespace.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_namespace(&self, plan: &NamespacePlan) -> anyhow::Result<()> {
        let metadata = json!({"name": plan.name, "labels": plan.labels, "annotations": plan.annotations});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        self.write(&format!("namespace-{}.yaml", plan.name), &[object])
    }

    pub(crate) fn write_pod(&self, plan: &PodPlan, at: &PodLocation<'_>) -> anyhow::Result<()> {
        let mut annotations = plan.annotations.clone();
        annotations.insert("standalone.heddle.dev/netns".to_owned(), at.netns.display().to_string());
        annotations.insert("standalone.heddle.dev/cgroup".to_owned(), at.cgroup.display().to_string());
        let ips: Vec<Value> = at.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": plan.name,
                "namespace": plan.namespace,
                "uid": uid(&plan.namespace, &plan.name),
                "labels": plan.labels,
                "annotations": annotations,
            },
            "spec": {
                "nodeName": at.node,
                "serviceAccountName": plan.name,
                "hostNetwork": plan.host_network,
                "containers": [{"name": "app", "image": "podapp"}],
            },
            "status": {
                "phase": "Running",
                "podIP": at.addresses.first(),
                "podIPs": ips,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        self.write(&pod_file(&plan.namespace, &plan.name), &[object])
    }

    /// Writes a Service and its EndpointSlices, one per address family.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_service(&self, plan: &ServicePlan, endpoints: &[Endpoint]) -> anyhow::Result<()> {
        let name_of = |port: u16| format!("port-{port}");
        let ports: Vec<Value> = plan
            .ports
            .iter()
            .map(
                |&(port, target)| json!({"name": name_of(port), "port": port, "targetPort": target, "protocol": "TCP"}),
            )
            .collect();
        let mut spec = Map::new();
        spec.insert("selector".to_owned(), json!({"service": plan.name}));
        spec.insert("ports".to_owned(), ports.into());
        if plan.headless {
            spec.insert("clusterIP".to_owned(), "None".into());
        } else {
            spec.insert("clusterIP".to_owned(), json!(plan.cluster_v4()));
            spec.insert("clusterIPs".to_owned(), json!([plan.cluster_v4(), plan.cluster_v6()]));
            spec.insert("ipFamilies".to_owned(), json!(["IPv4", "IPv6"]));
        }
        spec.extend(plan.spec.clone());
        let metadata = json!({"name": plan.name, "namespace": plan.namespace});
        let mut objects = vec![json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})];
        for (family, v4) in [("IPv4", true), ("IPv6", false)] {
            let ports: Vec<Value> = plan
                .ports
                .iter()
                .map(|&(port, target)| json!({"name": name_of(port), "port": target, "protocol": "TCP"}))
                .collect();
            let listed: Vec<Value> = endpoints.iter().filter_map(|e| endpoint(e, v4)).collect();
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{}-{}", plan.name, family.to_lowercase()),
                    "namespace": plan.namespace,
                    "labels": {"kubernetes.io/service-name": plan.name},
                },
                "addressType": family,
                "ports": ports,
                "endpoints": listed,
            }));
        }
        self.write(&format!("service-{}-{}.yaml", plan.namespace, plan.name), &objects)
    }
}

/// The file a pod's object is in.
#[must_use]
pub fn pod_file(namespace: &str, name: &str) -> String {
    format!("pod-{namespace}-{name}.yaml")
}

/// `metadata.uid` of a pod.
#[must_use]
pub fn uid(namespace: &str, name: &str) -> String {
    format!("uid-{namespace}-{name}")
}

fn endpoint(endpoint: &Endpoint, v4: bool) -> Option<Value> {
    let addresses: Vec<&IpAddr> = endpoint.addresses.iter().filter(|a| a.is_ipv4() == v4).collect();
    let Endpoint { pod, namespace, node, ready, serving, terminating, .. } = endpoint;
    (!addresses.is_empty()).then(|| {
        json!({
            "addresses": addresses,
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "nodeName": node,
            "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace, "uid": uid(namespace, pod)},
        })
    })
}

/// A value as block YAML, the way people write it. Scalars are JSON, which YAML contains.
#[must_use]
pub fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write_yaml(value, 0, &mut text);
    text
}

fn write_yaml(value: &Value, depth: usize, text: &mut String) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                text.push_str(&format!("{pad}{key}:"));
                write_nested(field, depth + 1, text);
            }
        }
        Value::Array(items) => {
            for item in items {
                let mut block = String::new();
                write_yaml(item, depth + 1, &mut block);
                text.push_str(&format!("{pad}- {}", block.trim_start()));
            }
        }
        scalar => text.push_str(&format!("{pad}{scalar}\n")),
    }
}

fn write_nested(value: &Value, depth: usize, text: &mut String) {
    let empty = value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty);
    match value {
        Value::Object(_) | Value::Array(_) if !empty => {
            text.push('\n');
            write_yaml(value, depth, text);
        }
        scalar => text.push_str(&format!(" {scalar}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_what_people_write() {
        let value = json!({
            "kind": "Pod",
            "metadata": {"labels": {}, "name": "web"},
            "spec": {"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}], "addresses": ["10.0.0.1", "::1"]},
        });
        let text = "kind: \"Pod\"\nmetadata:\n  labels: {}\n  name: \"web\"\nspec:\n  addresses:\n    - \"10.0.0.1\"\n    \
                    - \"::1\"\n  ports:\n    - name: \"a\"\n      port: 1\n    - name: \"b\"\n      port: 2\n";
        assert_eq!(yaml(&value), text);
    }
}
