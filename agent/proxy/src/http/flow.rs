//! What one HTTP/2 connection may make the agent hold, both ways, kept within its pod's budget.
//!
//! * **Receiving.** Its peer may always send [`WINDOW_LEAN_BYTES`] that nobody is charged for. What was received and cannot be sent
//!   on is charged to the pod, and the connection's window grows by as much, so that a stream nobody reads from does not stop the
//!   others. Where the budget has nothing left the window does not grow: the connection goes on with the lean one.
//! * **Speed.** While many bytes flow the window is wider, for a peer that is far away or slow to hear; that too is charged, for as
//!   long as the peer could use it: a window once given cannot be taken back, only used up.
//! * **Sending.** Streams hand over no more than [`UNSENT_BYTES_MAX`] before the socket has taken it, in turn; what it does not take
//!   is charged.
//!
//! So an idle connection is charged nothing, and all connections of a pod together hold its budget and their lean windows, at most.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use heddle_http::retry::REPLAY_BYTES_MAX;
use heddle_telemetry::Reason;
use http::HeaderMap;

use super::{STREAM_WINDOW_BYTES, WINDOW_LEAN_BYTES};
use crate::budget::Charge;
use crate::mesh::STREAMS_MAX;
use crate::registry::Conn;

/// Bytes handed to a connection and not yet taken by its socket, at most.
const UNSENT_BYTES_MAX: usize = 64 << 10;
/// What a stream hands over in its turn while others wait for theirs.
const TURN_BYTES: usize = 16 << 10;
/// Budget is taken and given back in steps, not for every frame.
const STEP_BYTES: usize = 16 << 10;
/// The widest window that bytes flow through, beyond the lean one, and how often a window must have been used to be doubled.
const WIDER_BYTES_MAX: usize = (1 << 20) - LEAN - 1;
const WINDOWS_TO_WIDEN: usize = 8;
const LEAN: usize = WINDOW_LEAN_BYTES as usize;
/// What all streams together can make a connection hold.
const HELD_BYTES_MAX: usize = STREAMS_MAX as usize * STREAM_WINDOW_BYTES as usize;
/// Parts smaller than this are joined while they wait: each keeps the buffer alive that it was read into.
const PART_BYTES_MIN: usize = 4 << 10;

/// One connection's account.
pub(crate) struct Flow {
    conn: Rc<Conn>,
    /// Received and not sent on.
    held: Cell<usize>,
    /// How much wider the window is while bytes flow.
    wider: Cell<usize>,
    /// What the peer may send now, at most.
    allowed: Cell<usize>,
    /// Taken of the pod's budget for the three.
    charged: Cell<usize>,
    /// The window its peer is given, as `h2` was told last.
    window: Cell<usize>,
    /// Bytes that came since the window was widened or looked at last.
    came: Cell<usize>,
    /// The budget had nothing left the last time.
    is_lean: Cell<bool>,
    /// The worker looks at it every second.
    is_watched: Cell<bool>,
    /// Handed over since the socket took everything last.
    unsent: Cell<usize>,
    charged_unsent: Cell<usize>,
    /// Counts how often the socket took everything while streams waited for it: the turns they take.
    turn: Cell<u64>,
    /// Streams that wait to hand bytes over, and whether each still does.
    waiting: RefCell<VecDeque<(Waker, Rc<Cell<bool>>)>>,
    /// Whoever drives the connection.
    driver: RefCell<Option<Waker>>,
}

impl Flow {
    /// Of a new connection, which starts with the lean window.
    pub(crate) fn new(conn: &Rc<Conn>) -> Rc<Self> {
        Rc::new(Self {
            conn: conn.clone(),
            held: Cell::new(0),
            wider: Cell::new(0),
            allowed: Cell::new(LEAN),
            charged: Cell::new(0),
            window: Cell::new(LEAN),
            came: Cell::new(0),
            is_lean: Cell::new(false),
            is_watched: Cell::new(false),
            unsent: Cell::new(0),
            charged_unsent: Cell::new(0),
            turn: Cell::new(0),
            waiting: RefCell::default(),
            driver: RefCell::new(None),
        })
    }

    /// Before the connection is driven: the window to give it, if it changed.
    pub(crate) fn new_window(&self) -> Option<u32> {
        let window = self.wanted_window();
        self.allowed.set(self.allowed.get().max(window.saturating_sub(self.held.get())));
        let changed = self.window.replace(window) != window;
        if changed { u32::try_from(window).ok() } else { None }
    }

    fn wanted_window(&self) -> usize {
        LEAN + self.charged.get().min(self.held.get().min(HELD_BYTES_MAX) + self.wider.get())
    }

    /// Whether it is charged for anything: an idle connection that is should go.
    pub(crate) fn is_charged(&self) -> bool {
        self.charged.get() + self.charged_unsent.get() > 0
    }

    /// Whether streams wait for the socket to take what others sent.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// The connection was driven. What its socket did not take is held until it does.
    pub(crate) fn driven(&self, cx: &Context<'_>, is_flushed: bool) {
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
        drop(driver);
        if is_flushed {
            self.flushed();
        }
        self.settle(&self.charged_unsent, self.unsent.get());
    }

    /// The socket took everything: those who wait longest have their turn.
    fn flushed(&self) {
        self.unsent.set(0);
        if self.waiting.borrow().is_empty() {
            return;
        }
        self.turn.set(self.turn.get() + 1);
        for _ in 0..UNSENT_BYTES_MAX / TURN_BYTES {
            let Some((waker, waits)) = self.waiting.borrow_mut().pop_front() else { return };
            waits.set(false);
            waker.wake();
        }
        // They may be gone, or want nothing any more: the connection looks around once more behind them.
        self.wake_driver();
    }

    /// The connection is gone: whoever waits finds that out.
    pub(crate) fn ended(&self) {
        self.waiting.borrow_mut().drain(..).for_each(|(waker, _)| waker.wake());
    }

    fn wake_driver(&self) {
        if let Some(driver) = self.driver.borrow_mut().take() {
            driver.wake();
        }
    }

    /// A second has passed: budget may have come back for what is held, and what was wide for speed may be so no longer.
    pub(crate) fn tick(self: &Rc<Self>) {
        self.is_watched.set(false);
        if self.wider.get() > 0 && self.came.replace(0) < LEAN + self.wider.get() {
            self.wider.set(0);
        }
        self.settle_received();
    }

    /// Bytes came off a stream.
    fn took(self: &Rc<Self>, bytes: usize) {
        self.allowed.set(self.allowed.get().saturating_sub(bytes));
        self.came.set(self.came.get() + bytes);
        let (window, wider) = (LEAN + self.wider.get(), self.wider.get());
        if self.came.get() >= WINDOWS_TO_WIDEN * window && wider < WIDER_BYTES_MAX {
            self.came.set(0);
            self.wider.set((wider + window).min(WIDER_BYTES_MAX));
            // Speed takes no more than half of what the pod has.
            let most = self.conn.worker.limits().buffered_bytes_max / 2;
            if !self.charge(&self.charged, self.wants(), most) {
                self.wider.set(wider);
            }
            self.settle_received();
        } else if self.charged.get() > 0 && self.held.get() == 0 {
            self.settle_received();
        }
    }

    fn hold(self: &Rc<Self>, bytes: usize) {
        self.held.set(self.held.get() + bytes);
        self.settle_received();
    }

    fn let_go(self: &Rc<Self>, bytes: usize) {
        self.held.set(self.held.get() - bytes);
        self.settle_received();
    }

    /// What it should be charged for receiving.
    fn wants(&self) -> usize {
        let still_allowed = (self.allowed.get() + self.held.get()).saturating_sub(LEAN);
        (self.held.get().min(HELD_BYTES_MAX) + self.wider.get()).max(still_allowed.min(self.charged.get()))
    }

    fn settle_received(self: &Rc<Self>) {
        let is_lean = !self.settle(&self.charged, self.wants());
        if is_lean && !self.is_lean.get() {
            self.conn.worker.metrics().count_budget_exceeded(Reason::PodBufferedBytesMax);
        }
        self.is_lean.set(is_lean);
        if (is_lean || self.wider.get() > 0) && !self.is_watched.replace(true) {
            self.conn.worker.watched_flows.borrow_mut().push(Rc::downgrade(self));
        }
        // A narrower one can wait until there is something to tell the peer.
        if self.window.get() + STEP_BYTES / 2 < self.wanted_window() {
            self.wake_driver();
        }
    }

    /// Takes or gives back budget so that `bytes` are charged; false if there is not enough, and what there was stays.
    fn settle(&self, charged: &Cell<usize>, bytes: usize) -> bool {
        self.charge(charged, bytes, self.conn.worker.limits().buffered_bytes_max)
    }

    fn charge(&self, charged: &Cell<usize>, bytes: usize, most: u64) -> bool {
        let (has, wants) = (charged.get(), bytes.next_multiple_of(STEP_BYTES));
        let budget = &self.conn.pod.budget;
        if wants > has {
            if !budget.try_buffer((wants - has) as u64, most) {
                return false;
            }
        } else if wants < has {
            budget.unbuffer((has - wants) as u64);
        }
        charged.set(wants);
        true
    }

    /// Waits for a turn; how many bytes may be handed over in it.
    fn poll_turn(&self, cx: &mut Context<'_>, turns: &mut Turns) -> Poll<usize> {
        let mut waiting = self.waiting.borrow_mut();
        let left = UNSENT_BYTES_MAX.saturating_sub(self.unsent.get());
        if left > 0 && (waiting.is_empty() || turns.last != self.turn.get()) {
            turns.last = self.turn.get();
            return Poll::Ready(if waiting.is_empty() { left } else { left.min(TURN_BYTES) });
        }
        let waits = turns.waits.get_or_insert_default();
        if !waits.replace(true) {
            if waiting.len() >= 2 * STREAMS_MAX as usize {
                // Streams that are gone.
                waiting.retain(|(_, waits)| Rc::strong_count(waits) > 1);
            }
            waiting.push_back((cx.waker().clone(), waits.clone()));
        }
        Poll::Pending
    }
}

/// A stream's turns: its last one, and whether it waits for the next.
struct Turns {
    last: u64,
    waits: Option<Rc<Cell<bool>>>,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.charge(&self.charged, 0, 0);
        self.charge(&self.charged_unsent, 0, 0);
    }
}

/// A stream's bytes as they come. What is taken off it stays in the stream's window until it is [`Incoming::release`]d.
pub(crate) struct Incoming {
    stream: RecvStream,
    flow: Rc<Flow>,
    /// Taken off the stream because nobody could send it on: parts, and small ones joined.
    parts: VecDeque<Bytes>,
    small: BytesMut,
    held: usize,
    data_ended: bool,
    kept: Option<Box<Kept>>,
    /// Taken already, to be taken again.
    trailers: Option<HeaderMap>,
    /// Given back to the sender's window already, and sent on once more.
    released_before: usize,
}

/// What was taken since keeping began, to be taken again by another attempt.
struct Kept {
    /// None once there was more than may be kept.
    parts: Option<Vec<Bytes>>,
    /// The small ones at the end, joined.
    small: BytesMut,
    released: usize,
    charge: Charge,
}

impl Incoming {
    pub(crate) fn new(stream: RecvStream, flow: Rc<Flow>) -> Self {
        let (parts, small) = (VecDeque::new(), BytesMut::new());
        Self { stream, flow, parts, small, held: 0, data_ended: false, kept: None, trailers: None, released_before: 0 }
    }

    /// Whether nothing more comes, trailers included.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.is_drained() && self.stream.is_end_stream()
    }

    fn is_drained(&self) -> bool {
        self.parts.is_empty() && self.small.is_empty()
    }

    /// From here on what is taken is kept, as far as it may be.
    pub(crate) fn keep(&mut self) {
        let charge = Charge::new(&self.flow.conn);
        self.kept = Some(Box::new(Kept { parts: Some(Vec::new()), small: BytesMut::new(), released: 0, charge }));
    }

    /// Nobody will take it again.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }

    /// Whether all that was taken since keeping began is kept.
    pub(crate) fn can_rewind(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.parts.is_some())
    }

    /// All that was taken since keeping began, if it is kept.
    pub(crate) fn kept_body(&self) -> Option<Bytes> {
        let Kept { parts, small, .. } = &**self.kept.as_ref()?;
        let parts = parts.as_ref()?;
        let mut body = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum::<usize>() + small.len());
        parts.iter().for_each(|part| body.extend_from_slice(part));
        body.extend_from_slice(small);
        Some(body.freeze())
    }

    /// What was taken since keeping began comes again, and is kept anew.
    pub(crate) fn rewind(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        let Some(mut parts) = kept.parts.as_mut().map(std::mem::take) else { return };
        parts.extend(Some(kept.small.split().freeze()).filter(|part| !part.is_empty()));
        self.released_before += std::mem::take(&mut kept.released);
        kept.charge.to(0);
        parts.into_iter().rev().for_each(|part| self.parts.push_front(part));
    }

    /// The next part.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let polled = self.poll_part(cx);
        if let (Some(kept), Poll::Ready(Some(Ok(part)))) = (&mut self.kept, &polled) {
            kept.push(part);
        }
        polled
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let part = self.parts.pop_front().or_else(|| (!self.small.is_empty()).then(|| self.small.split().freeze()));
        if let Some(part) = part {
            return Poll::Ready(Some(Ok(part)));
        }
        if self.data_ended {
            return Poll::Ready(None);
        }
        let data = ready!(self.stream.poll_data(cx));
        match &data {
            Some(Ok(data)) => self.flow.took(data.len()),
            Some(Err(_)) => {}
            None => self.data_ended = true,
        }
        Poll::Ready(data)
    }

    /// What comes behind the data.
    pub(crate) fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Ok(Some(trailers)));
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        if let (Some(kept), Ok(Some(_))) = (&mut self.kept, &trailers) {
            // They come once.
            kept.give_up();
        }
        Poll::Ready(trailers)
    }

    /// A part that was only looked at comes again.
    pub(crate) fn untake(&mut self, part: Bytes) {
        self.parts.push_front(part);
    }

    /// Trailers that were only looked at come again.
    pub(crate) fn untake_trailers(&mut self, trailers: HeaderMap) {
        self.trailers = Some(trailers);
    }

    /// `pending` bytes wait to be sent on. They, and what else came, are held from now on: taken out of the connection's own queue,
    /// which has room for few frames, and charged, so that the connection's other streams have a window. An error shows when
    /// whoever waits goes on, at the latest; the stream's end wakes it as ever.
    pub(crate) fn wait(&mut self, cx: &mut Context<'_>, pending: usize) {
        let mut queued: usize = self.parts.iter().map(Bytes::len).sum::<usize>() + self.small.len();
        while !self.data_ended
            && let Poll::Ready(data) = self.stream.poll_data(cx)
        {
            match data {
                Some(Ok(data)) => {
                    queued += data.len();
                    self.flow.took(data.len());
                    self.push(data);
                }
                Some(Err(_)) => break,
                None => self.data_ended = true,
            }
        }
        self.set_held(queued + pending);
    }

    fn push(&mut self, data: Bytes) {
        if data.len() < PART_BYTES_MIN {
            self.small.extend_from_slice(&data);
            return;
        }
        if !self.small.is_empty() {
            self.parts.push_back(self.small.split().freeze());
        }
        self.parts.push_back(data);
    }

    /// `bytes` were sent on: their sender may send as many again.
    pub(crate) fn release(&mut self, bytes: usize) {
        // Before the connection hears of it: what is not charged any more is no window any more.
        self.set_held(self.held.saturating_sub(bytes));
        let before = bytes.min(self.released_before);
        self.released_before -= before;
        if let Some(kept) = &mut self.kept {
            kept.released += bytes;
        }
        // An error means that the stream is closed.
        let _ = self.stream.flow_control().release_capacity(bytes - before);
    }

    fn set_held(&mut self, held: usize) {
        match held.cmp(&self.held) {
            std::cmp::Ordering::Less => self.flow.let_go(self.held - held),
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => self.flow.hold(held - self.held),
        }
        self.held = held;
    }
}

impl Kept {
    fn push(&mut self, part: &Bytes) {
        let Some(parts) = &mut self.parts else { return };
        let bytes = self.charge.bytes() + part.len();
        if bytes <= REPLAY_BYTES_MAX && self.charge.to(bytes) {
            if part.len() < PART_BYTES_MIN {
                self.small.extend_from_slice(part);
                return;
            }
            if !self.small.is_empty() {
                parts.push(self.small.split().freeze());
            }
            parts.push(part.clone());
        } else {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.parts = None;
        self.small = BytesMut::new();
        self.charge.to(0);
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.set_held(0);
    }
}

/// A stream's way out.
pub(crate) struct Outgoing {
    stream: SendStream<Bytes>,
    flow: Rc<Flow>,
    turns: Turns,
}

impl Outgoing {
    pub(crate) fn new(stream: SendStream<Bytes>, flow: Rc<Flow>) -> Self {
        Self { stream, flow, turns: Turns { last: u64::MAX, waits: None } }
    }

    /// Waits until some of `size` bytes can be sent, and says how many; `None` if the stream takes no more.
    pub(crate) fn poll_capacity(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<Option<usize>> {
        self.stream.reserve_capacity(size);
        let capacity = match self.stream.capacity() {
            0 => match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(capacity)) => capacity,
                Some(Err(_)) | None => return Poll::Ready(None),
            },
            capacity => capacity,
        };
        let turn = ready!(self.flow.poll_turn(cx, &mut self.turns));
        Poll::Ready(Some(capacity.min(size).min(turn)))
    }

    /// Hands data over, as much as there is capacity for.
    pub(crate) fn send_data(&mut self, data: Bytes, ended: bool) -> Result<(), h2::Error> {
        self.flow.unsent.set(self.flow.unsent.get() + data.len());
        self.stream.send_data(data, ended)
    }

    pub(crate) fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), h2::Error> {
        self.stream.send_trailers(trailers)
    }

    pub(crate) fn send_reset(&mut self, code: h2::Reason) {
        self.stream.send_reset(code);
    }

    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<h2::Reason, h2::Error>> {
        self.stream.poll_reset(cx)
    }
}
