//! Who wants an address: usually one, and by rank if several, so that the order of arrival never matters.

/// Something that can hold an address, with a rank that depends on the object alone and is never shared by two objects.
pub(crate) trait Claim: Clone {
    /// Orders claims, best first.
    type Rank<'a>: Ord
    where
        Self: 'a;

    /// The rank of this claim.
    fn rank(&self) -> Self::Rank<'_>;
}

/// One or more claims, best first.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claims<T> {
    best: T,
    /// Empty, and so without an allocation, unless there is a conflict.
    rest: Vec<T>,
}

impl<T> Claims<T> {
    /// A single claim.
    pub(crate) const fn of(claim: T) -> Self {
        Self { best: claim, rest: Vec::new() }
    }

    /// The claim that holds.
    pub(crate) const fn best(&self) -> &T {
        &self.best
    }

    /// All of them, best first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.best).chain(&self.rest)
    }
}

impl<T: Claim> Claims<T> {
    /// These and one more, which replaces one of equal rank.
    pub(crate) fn with(&self, claim: T) -> Self {
        let mut all: Vec<T> = self.iter().filter(|c| c.rank() != claim.rank()).cloned().collect();
        let at = all.partition_point(|c| c.rank() < claim.rank());
        all.insert(at, claim);
        let best = all.remove(0);
        Self { best, rest: all }
    }

    /// These but for the one with the rank of `claim`; `None` if nothing is left.
    pub(crate) fn without(&self, claim: &T) -> Option<Self> {
        let mut left = self.iter().filter(|c| c.rank() != claim.rank()).cloned();
        let best = left.next()?;
        Some(Self { best, rest: left.collect() })
    }
}
