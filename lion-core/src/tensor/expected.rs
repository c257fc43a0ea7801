//! The checks of the arrays of an update.

use super::shapes_differ;
use crate::{Dtype, Error, GradRef, MemoryOrder, Operand, ParamMut};

/// The requirements on the arrays of a parameter.
pub(crate) struct Expected<'e> {
    /// Name of the parameter.
    pub(crate) name: &'e str,
    /// Number of elements.
    pub(crate) len: usize,
    /// Element type of the parameter. The gradient can have any type.
    pub(crate) dtype: Dtype,
    /// The memory order of earlier steps; `None` before the first one.
    pub(crate) order: Option<&'e MemoryOrder>,
}

impl Expected<'_> {
    /// Checks lengths, type, shapes and memory orders.
    pub(crate) fn check(&self, param: &ParamMut<'_>, grad: &GradRef<'_>) -> Result<(), Error> {
        self.check_array(Operand::Parameter, &param.order, param.data.len())?;
        self.check_array(Operand::Gradient, &grad.order, grad.data.len())?;
        if param.data.dtype() != self.dtype {
            return Err(Error::WrongDtype {
                parameter: self.name.to_owned(),
                given: param.data.dtype(),
                wanted: self.dtype,
            });
        }
        if shapes_differ(&grad.shape, &param.shape) {
            let shape = |shape: &Option<Box<[usize]>>| shape.clone().unwrap_or_default().into_vec();
            return Err(Error::ShapeMismatch {
                parameter: self.name.to_owned(),
                given: shape(&grad.shape),
                wanted: shape(&param.shape),
            });
        }
        match self.order {
            Some(earlier) => self.check_order(Operand::Parameter, &param.order, earlier)?,
            None => self.check_first_order(&param.order)?,
        }
        self.check_order(Operand::Gradient, &grad.order, &param.order)
    }

    /// Checks that an array has no gaps, and the number of elements.
    pub(crate) fn check_array(
        &self,
        operand: Operand,
        order: &MemoryOrder,
        given: usize,
    ) -> Result<(), Error> {
        if let MemoryOrder::Strided(gaps) = order {
            return Err(Error::NotContiguous {
                parameter: self.name.to_owned(),
                operand,
                shape: gaps.shape.clone(),
                strides: gaps.strides.clone(),
            });
        }
        if given != self.len {
            return Err(Error::WrongLength {
                parameter: self.name.to_owned(),
                operand,
                given,
                wanted: self.len,
            });
        }
        Ok(())
    }

    /// Checks the memory order of a first step, which the state keeps.
    fn check_first_order(&self, order: &MemoryOrder) -> Result<(), Error> {
        match order {
            MemoryOrder::Permuted(axes) if !order.is_order_of(self.len) => {
                Err(Error::NotContiguous {
                    parameter: self.name.to_owned(),
                    operand: Operand::Parameter,
                    shape: axes.iter().map(|&(len, _)| len).collect(),
                    strides: axes.iter().map(|&(_, stride)| stride).collect(),
                })
            }
            _ => Ok(()),
        }
    }

    fn check_order(
        &self,
        operand: Operand,
        given: &MemoryOrder,
        wanted: &MemoryOrder,
    ) -> Result<(), Error> {
        if given == wanted {
            return Ok(());
        }
        Err(Error::OrderMismatch {
            parameter: self.name.to_owned(),
            operand,
            given: given.clone(),
            wanted: wanted.clone(),
        })
    }
}
