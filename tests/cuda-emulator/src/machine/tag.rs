//! A 64-bit tag of the last accesses to a byte of shared memory that can race with later ones.
//!
//! The fields, from the most significant bit: the interval between barriers of the CTA, the number of `bar.warp.sync` that the
//! warp had completed, the warp, and the lane. Warp and lane can each be "several".
//!
//! Accesses are ordered if they are in different intervals, or by one lane, or by lanes of one warp with a `bar.warp.sync` in
//! between. A `bar.warp.sync` of some lanes counts as one of all lanes. Races can therefore be missed, but there are no false
//! positives.

const LANE: u64 = 31;
const SEVERAL_LANES: u64 = 1 << 5;
const WARP: u32 = 6;
const SEVERAL_WARPS: u64 = 1 << 11;
const ATOMIC: u64 = 1 << 12;
/// Position of the number of completed `bar.warp.sync`. It has 29 bits, and no warp executes more instructions than that.
const MEETINGS: u32 = 13;
const EPOCH: u32 = 42;

/// The last interval that can be represented.
pub(super) const LAST_EPOCH: u32 = (1 << (64 - EPOCH)) - 1;

/// The tag. The default belongs to an interval before all others.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Tag(u64);

impl Tag {
    pub(super) fn new(epoch: u32, meetings: u32, warp: u32, lane: u32) -> Self {
        let (epoch, meetings) = (u64::from(epoch), u64::from(meetings));
        Self(epoch << EPOCH | meetings << MEETINGS | u64::from(warp) << WARP | u64::from(lane))
    }

    /// Returns the tag of accesses by several warps.
    pub(super) fn of_several_warps(epoch: u32) -> Self {
        Self(u64::from(epoch) << EPOCH | SEVERAL_WARPS)
    }

    pub(super) fn by_atomic(self) -> Self {
        Self(self.0 | ATOMIC)
    }

    pub(super) fn is_atomic(self) -> bool {
        self.0 & ATOMIC != 0
    }

    /// Returns the tag of the same accesses by several lanes of the warp.
    pub(super) fn and_other_lanes(self) -> Self {
        Self(self.0 & !LANE | SEVERAL_LANES)
    }

    /// Returns whether the accesses belong to an interval before this one.
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

    /// Returns the tag of these accesses and one more access of the same kind, by one lane.
    pub(super) fn and(self, access: Self) -> Self {
        if self.ordered(access) {
            access
        } else if self.0 & SEVERAL_WARPS == 0 && self.warp() == access.warp() {
            access.and_other_lanes()
        } else {
            Self(access.0 >> EPOCH << EPOCH | SEVERAL_WARPS | access.0 & ATOMIC)
        }
    }

    /// Renumbers the interval, when numbering restarts, to the first one if it is `first` or later, otherwise to one before it.
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

    /// Describes the origin of these accesses relative to an access of this warp, and names the missing synchronization.
    pub(super) fn origin(self, warp: u32) -> (String, &'static str) {
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
