//! Asking again: a change of policies is felt by what is under way, request by request.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{Decided, View, stands};
use crate::registry::Conn;

/// Watches over one request from its permit to its end.
pub(crate) struct Judge {
    /// Whose rules let it in, as of which policies.
    judged: Option<(Rc<Conn>, u64)>,
    /// The path it was sent with, where that is not the client's.
    path: Option<Box<str>>,
    place: Option<usize>,
}

impl Judge {
    pub(super) fn new(judged: Option<(Rc<Conn>, u64)>, path: Option<Box<str>>) -> Self {
        Self { judged, path, place: None }
    }

    /// Ready once policies do not let the request in any more, with what there is to tell of that. `view` is called only where they changed.
    pub(crate) fn poll<'a>(&mut self, cx: &mut Context<'_>, view: impl FnOnce() -> View<'a>) -> Poll<Revoked> {
        let Some((conn, judged)) = &mut self.judged else { return Poll::Pending };
        let generation = conn.worker.policy_generation();
        if std::mem::replace(judged, generation) != generation {
            let mut view = view();
            if let Some(path) = &self.path {
                view.set_path_and_query(path.to_string());
            }
            if let Err(decided) = stands(conn, Some(&mut view)) {
                return Poll::Ready(Revoked(decided));
            }
        }
        self.place = Some(conn.worker.judges.wait(self.place, cx.waker()));
        Poll::Pending
    }
}

/// A permit that was taken back, and by what.
pub(crate) struct Revoked(pub(super) Box<Decided>);

impl Drop for Judge {
    fn drop(&mut self) {
        if let (Some((conn, _)), Some(place)) = (&self.judged, self.place) {
            conn.worker.judges.leave(place);
        }
    }
}

/// The requests of a worker that are to be judged anew when a policy changes.
#[derive(Default)]
pub(crate) struct Judges(RefCell<Places>);

#[derive(Default)]
struct Places {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Judges {
    fn wait(&self, place: Option<usize>, waker: &Waker) -> usize {
        let mut places = self.0.borrow_mut();
        let place = place.or_else(|| places.free.pop()).unwrap_or_else(|| {
            places.wakers.push(None);
            places.wakers.len() - 1
        });
        let slot = &mut places.wakers[place];
        let is_known = slot.as_ref().is_some_and(|known| known.will_wake(waker));
        let former = if is_known { None } else { slot.replace(waker.clone()) };
        // Behind the borrow: it may be the last of its task.
        drop(places);
        drop(former);
        place
    }

    fn leave(&self, place: usize) {
        let mut places = self.0.borrow_mut();
        // Dropped behind the borrow: it may be the last of its task.
        let waker = places.wakers[place].take();
        places.free.push(place);
        if places.free.len() == places.wakers.len() && places.wakers.len() > 1024 {
            *places = Places::default();
        }
        drop(places);
        drop(waker);
    }

    /// Has everyone look again.
    pub(crate) fn wake_all(&self) {
        let wakers: Vec<Waker> = self.0.borrow().wakers.iter().flatten().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}
