//! Asking again: a change of policies is felt by what is under way, request by request.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{View, stands};
use crate::registry::Conn;

/// Watches over one request from its permit to its end.
pub(crate) struct Judge {
    /// Whose rules let it in, as of which policies.
    judged: Option<(Rc<Conn>, u64)>,
    place: Option<usize>,
}

impl Judge {
    pub(super) fn new(judged: Option<(Rc<Conn>, u64)>) -> Self {
        Self { judged, place: None }
    }

    /// Ready once policies do not let the request in any more. `view` is called only where they changed.
    pub(crate) fn poll<'a>(&mut self, cx: &mut Context<'_>, view: impl FnOnce() -> View<'a>) -> Poll<()> {
        let Some((conn, judged)) = &mut self.judged else { return Poll::Pending };
        let generation = conn.worker.policy_generation();
        if std::mem::replace(judged, generation) != generation && !stands(conn, Some(&mut view())) {
            return Poll::Ready(());
        }
        self.place = Some(conn.worker.judges.wait(self.place, cx.waker()));
        Poll::Pending
    }
}

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
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
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
