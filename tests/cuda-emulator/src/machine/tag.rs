//! A 64-bit tag of the last accesses to a byte of shared memory that can race with later ones.
//!
//! From the top: the interval between barriers of the CTA; how often the warp's lanes had met at `bar.warp.sync`;
//! warp and lane, each possibly several. Accesses of earlier intervals are ordered before those of later ones; so are
//! accesses of lanes of one warp that have met since; and those of one lane. A `bar.warp.sync` of some lanes counts
//! as one of all: a race can be missed so, never invented.

const LANE: u64 = 31;
const SEVERAL_LANES: u64 = 1 << 5;
const WARP: u32 = 6;
const SEVERAL_WARPS: u64 = 1 << 11;
const ATOMIC: u64 = 1 << 12;
/// No warp executes more instructions than fit here.
const MEETINGS: u32 = 13;
const EPOCH: u32 = 42;

/// The last interval that has a number.
pub(super) const LAST_EPOCH: u32 = (1 << (64 - EPOCH)) - 1;

/// The default is of an interval before all.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Tag(u64);

impl Tag {
    pub(super) fn new(epoch: u32, meetings: u32, warp: u32, lane: u32) -> Self {
        let (epoch, meetings) = (u64::from(epoch), u64::from(meetings));
        Self(epoch << EPOCH | meetings << MEETINGS | u64::from(warp) << WARP | u64::from(lane))
    }

    /// Of accesses by more than one warp.
    pub(super) fn of_several_warps(epoch: u32) -> Self {
        Self(u64::from(epoch) << EPOCH | SEVERAL_WARPS)
    }

    pub(super) fn by_atomic(self) -> Self {
        Self(self.0 | ATOMIC)
    }

    pub(super) fn is_atomic(self) -> bool {
        self.0 & ATOMIC != 0
    }

    /// Of more than one lane of the warp.
    pub(super) fn and_other_lanes(self) -> Self {
        Self(self.0 & !LANE | SEVERAL_LANES)
    }

    /// Returns whether it belongs to an interval before this one.
    pub(super) fn before(self, epoch: u32) -> bool {
        self.0 >> EPOCH < u64::from(epoch)
    }

    /// Returns whether the tagged accesses are ordered before an access of one lane.
    pub(super) fn ordered(self, access: Self) -> bool {
        if self.0 >> EPOCH < access.0 >> EPOCH {
            return true;
        }
        if self.0 & SEVERAL_WARPS != 0 || self.warp() != access.warp() {
            return false;
        }
        self.0 >> MEETINGS < access.0 >> MEETINGS
            || (self.0 & SEVERAL_LANES == 0 && self.0 & LANE == access.0 & LANE)
    }

    /// Returns the tag of these accesses and one more, of one lane and the same kind.
    pub(super) fn and(self, access: Self) -> Self {
        if self.ordered(access) {
            access
        } else if self.0 & SEVERAL_WARPS == 0 && self.warp() == access.warp() {
            access.and_other_lanes()
        } else {
            Self(access.0 >> EPOCH << EPOCH | SEVERAL_WARPS | access.0 & ATOMIC)
        }
    }

    /// Renumbers the interval: the first one if it is `first` or later, otherwise one before.
    pub(super) fn renumbered(self, first: u32) -> Self {
        if self.before(first) {
            Self::default()
        } else {
            Self(1 << EPOCH | self.0 & ((1 << EPOCH) - 1))
        }
    }

    fn warp(self) -> u64 {
        self.0 >> WARP & 31
    }

    /// Describes the origin for an access of this warp, and the missing ordering.
    pub(super) fn who(self, warp: u32) -> (String, &'static str) {
        if self.0 & SEVERAL_WARPS != 0 {
            ("other warps".into(), "barrier")
        } else if self.warp() != u64::from(warp) {
            (format!("warp {}", self.warp()), "barrier")
        } else if self.0 & SEVERAL_LANES != 0 {
            ("other lanes".into(), "bar.warp.sync")
        } else {
            (format!("lane {}", self.0 & LANE), "bar.warp.sync")
        }
    }
}
