//! Which words of MeshTLS objects are not in force, as stricter ones of the same weight are: told once per object and
//! field, however many pods it concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use heddle_api::mesh_tls::Overruled;
use heddle_api::{Key, Kind, Problem};
use heddle_model::PodUid;

use crate::reducer::Report;

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Overrulings {
    of_pod: HashMap<PodUid, Vec<(Key, Overruled)>>,
    told: BTreeMap<(Key, Overruled), (Report, BTreeSet<PodUid>)>,
}

impl Overrulings {
    /// Replaces what concerns one pod.
    pub(crate) fn set(&mut self, uid: &PodUid, namespace: &Arc<str>, overruled: Vec<Overruled>) {
        for told in self.of_pod.remove(uid).unwrap_or_default() {
            if let Some((_, pods)) = self.told.get_mut(&told) {
                pods.remove(uid);
                if pods.is_empty() {
                    self.told.remove(&told);
                }
            }
        }
        if overruled.is_empty() {
            return;
        }
        let key = |o: &Overruled| Key { kind: Kind::MeshTls, namespace: namespace.clone(), name: o.name.clone() };
        let overruled: Vec<_> = overruled.into_iter().map(|o| (key(&o), o)).collect();
        for told in &overruled {
            let report = || (report(&told.0, &told.1), BTreeSet::new());
            self.told.entry(told.clone()).or_insert_with(report).1.insert(uid.clone());
        }
        self.of_pod.insert(uid.clone(), overruled);
    }

    /// Pods and words remembered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.of_pod.len() + self.told.len()
    }

    /// What to tell, by object.
    pub(crate) fn reports(&self) -> impl Iterator<Item = (&Key, &Report)> {
        self.told.iter().map(|((key, _), (report, _))| (key, report))
    }
}

fn report(key: &Key, overruled: &Overruled) -> Report {
    let Overruled { field, mode, by, stricter, .. } = overruled;
    let message = format!(
        "`{}` is not in force for pods that MeshTLS {}/{by} speaks for too: of several the strictest counts, here `{}`",
        mode.as_str(),
        key.namespace,
        stricter.as_str()
    );
    Report { problem: Problem { field: field.clone(), line: 0, message }, warning: true }
}
