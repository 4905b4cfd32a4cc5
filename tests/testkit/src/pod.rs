//! A pod of a started mesh.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use crate::objects::{PodLocation, Source, pod_file};
use crate::place::Place;
use crate::server::Server;
use crate::topology::{MESH_LABEL, PodPlan};

/// A pod. As a [`Place`] it is the pod's network namespace and cgroup.
#[derive(Debug)]
pub struct Pod {
    pub(crate) place: Place,
    pub(crate) plan: Mutex<PodPlan>,
    pub(crate) node: String,
    pub(crate) source: Source,
    pub(crate) servers: Vec<Server>,
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Pod {
    /// Its network namespace and cgroup.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// `metadata.namespace`.
    #[must_use]
    pub fn namespace(&self) -> String {
        self.plan().namespace
    }

    /// Its object as written last, without status.
    #[must_use]
    pub fn plan(&self) -> PodPlan {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The name of its node.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.node
    }

    /// Whether it lives in the node's network namespace.
    #[must_use]
    pub fn is_on_host_network(&self) -> bool {
        self.plan().host_network
    }

    /// The server declared at this place of the pod's `serves`.
    #[must_use]
    pub fn server(&self, index: usize) -> &Server {
        let Some(server) = self.servers.get(index) else { panic!("pod {} has no server {index}", self.name()) };
        server
    }

    /// Changes its object and writes it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn edit(&self, change: impl FnOnce(&mut PodPlan)) -> anyhow::Result<()> {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut plan);
        self.source.write_pod(&plan, &self.location())
    }

    /// Writes its object, changed, into another directory; its own stays as it is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_into(&self, source: &Source, change: impl FnOnce(&mut PodPlan)) -> anyhow::Result<()> {
        let mut plan = self.plan();
        change(&mut plan);
        source.write_pod(&plan, &self.location())
    }

    pub(crate) fn location(&self) -> PodLocation<'_> {
        PodLocation {
            node: &self.node,
            addresses: &self.place.addresses,
            netns: &self.place.netns_path,
            cgroup: self.place.cgroup.path(),
        }
    }

    /// Opts it in by its own label.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn join_mesh(&self) -> anyhow::Result<()> {
        self.edit(|plan| _ = plan.labels.insert(MESH_LABEL.to_owned(), "enabled".to_owned()))
    }

    /// Opts it out by its own label.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn leave_mesh(&self) -> anyhow::Result<()> {
        self.edit(|plan| _ = plan.labels.insert(MESH_LABEL.to_owned(), "disabled".to_owned()))
    }

    /// Removes its object; its programs run on.
    ///
    /// # Errors
    /// The file is not there.
    pub fn delete_object(&self) -> anyhow::Result<()> {
        self.source.remove(&pod_file(&self.namespace(), self.name()))
    }
}
