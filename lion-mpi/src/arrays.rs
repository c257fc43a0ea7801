//! The arrays of a step, by the index of their parameter.

use lion::tensor::{GradRef, ParamMut, Slice, SliceMut};
use std::ops::Range;

/// The arrays of one parameter. Both are in host memory.
#[derive(Debug)]
pub(crate) struct Array<'a> {
    /// The index of the parameter in the division.
    pub(crate) index: usize,
    pub(crate) param: ParamMut<'a>,
    pub(crate) grad: GradRef<'a>,
}

/// The arrays of a step, in the order of their indices.
#[derive(Debug)]
pub(crate) struct Arrays<'a> {
    list: Vec<Array<'a>>,
    /// The position in the list of each parameter of the division.
    positions: Vec<Option<usize>>,
}

/// A part of a parameter in a bucket of this rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The index of the parameter in the division.
    pub(crate) index: usize,
    /// Its elements.
    pub(crate) range: Range<usize>,
    /// Where its sums are in the sums of the bucket.
    pub(crate) sums: Range<usize>,
}

impl<'a> Arrays<'a> {
    /// `list` is in the order of the indices, which are below `params`.
    pub(crate) fn new(list: Vec<Array<'a>>, params: usize) -> Self {
        let mut positions = vec![None; params];
        for (position, array) in list.iter().enumerate() {
            positions[array.index] = Some(position);
        }
        Arrays { list, positions }
    }

    pub(crate) fn list(&self) -> &[Array<'a>] {
        &self.list
    }

    /// Returns the gradient of a parameter, or `None` if the step does not update the parameter.
    pub(crate) fn grad(&self, index: usize) -> Option<Slice<'_>> {
        self.list[self.positions[index]?].grad.data.host()
    }

    /// Returns a parameter, or `None` if the step does not update it.
    pub(crate) fn param(&self, index: usize) -> Option<Slice<'_>> {
        self.list[self.positions[index]?].param.data.host()
    }

    /// Returns a parameter, or `None` if the step does not update it.
    pub(crate) fn param_mut(&mut self, index: usize) -> Option<SliceMut<'_>> {
        self.list[self.positions[index]?].param.data.host_mut()
    }

    /// Returns the elements of the parts, which are in the order of the indices.
    pub(crate) fn parts_mut<'s>(
        &'s mut self,
        parts: &'s [Part],
    ) -> impl Iterator<Item = (&'s Part, SliceMut<'s>)> {
        let mut parts = parts.iter().peekable();
        self.list.iter_mut().filter_map(move |array| {
            let part = parts.next_if(|part| part.index == array.index)?;
            let (before, _) = array.param.data.host_mut()?.split_at(part.range.end);
            Some((part, before.split_at(part.range.start).1))
        })
    }
}
