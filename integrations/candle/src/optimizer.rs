//! The optimizer: its variables, and a step.

use crate::Error;
use crate::lend::Lent;
use crate::variable::{Variable, address, check, elements};
use candle_core::Var;
use candle_core::backprop::GradStore;
use candle_nn::{Optimizer, VarMap};
use lion::backend::Operand;
use lion::tensor::Update;
use lion::{
    Device, Diagnosis, Lion, LionBuilder, MissingGradient, ParamSpec, StepArgs, StepReport,
};
use std::collections::HashMap;
use std::fmt;
use std::sync::PoisonError;

/// The Lion optimizer for variables of candle, which it steps in place. [`Lion`] has the formula.
///
/// It implements [`candle_nn::Optimizer`]; the documentation of the crate has an example. Each variable belongs to a name.
/// [`Optimizer::new`] has no names, so it accepts no variables; use [`from_varmap`](LionCandle::from_varmap) or
/// [`add`](LionCandle::add).
pub struct LionCandle {
    pub(crate) lion: Lion,
    pub(crate) variables: Vec<Variable>,
    /// The index in `variables` by the address of the storage.
    storages: HashMap<usize, usize>,
    /// A learning rate that `lion` has refused, as `set_learning_rate` cannot return an error.
    pub(crate) refused_lr: Option<RefusedLr>,
    report: StepReport,
}

/// A learning rate that `lion` has refused.
pub(crate) struct RefusedLr {
    given: f64,
    /// The learning rate that `lion` has kept. If it has another one now, the user has set a valid one since.
    kept: f64,
}

impl LionCandle {
    /// Returns an optimizer of all variables of floats of a `VarMap`, under their names there. Variables that are added
    /// to the map later are not stepped, unless [`add`](LionCandle::add) adds them here.
    ///
    /// The running mean and variance of a [`BatchNorm`](candle_nn::BatchNorm) are variables of its `VarMap`. They never have
    /// gradients, so no step changes them; [`save`](LionCandle::save) saves them with the other variables.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a variable that is on a device, strided, or of floats other than `f32`, `f16` and
    /// `bf16`; [`Error::SharedStorage`] for a variable with two names; [`Error::Lion`] with the errors of
    /// [`LionBuilder::build`] and [`Lion::register`].
    pub fn from_varmap(varmap: &VarMap, builder: LionBuilder) -> Result<Self, Error> {
        let mut named: Vec<(String, Var)> = {
            let map = varmap.data().lock().unwrap_or_else(PoisonError::into_inner);
            let pairs = map.iter().filter(|(_, var)| var.dtype().is_float());
            pairs
                .map(|(name, var)| (name.clone(), var.clone()))
                .collect()
        };
        named.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut optimizer = Self::without_variables(builder)?;
        for (name, var) in named {
            optimizer.add(name, &var)?;
        }
        Ok(optimizer)
    }

    fn without_variables(builder: LionBuilder) -> Result<Self, Error> {
        Ok(LionCandle {
            lion: builder.device_if_unset(Device::Cpu).build()?,
            variables: Vec::new(),
            storages: HashMap::new(),
            refused_lr: None,
            report: StepReport::default(),
        })
    }

    /// Adds a variable under a name, for variables that are in no `VarMap`. It joins the first
    /// [group](LionBuilder::group) that contains its name.
    ///
    /// ```
    /// use candle_core::{Device, Var};
    /// use candle_nn::Optimizer;
    /// use lion::Lion;
    /// use lion_candle::LionCandle;
    ///
    /// let x = Var::new(&[1f32, -2.0], &Device::Cpu)?;
    /// let mut optimizer = LionCandle::empty(Lion::builder().lr(0.5))?;
    /// optimizer.add("x", &x)?;
    /// optimizer.backward_step(&x.sqr()?.sum_all()?)?;
    /// assert_eq!(x.to_vec1::<f32>()?, [0.5, -1.5]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a variable that is on a device, strided, or not of `f32`, `f16` or `bf16`;
    /// [`Error::SharedStorage`] for a variable that has been added; [`Error::Lion`] with the errors of
    /// [`Lion::register`], for example if the name is taken.
    pub fn add(&mut self, name: impl Into<String>, var: &Var) -> Result<(), Error> {
        let name = name.into();
        let checked = check(&name, Operand::Parameter, var)?;
        if let Some(&other) = self.storages.get(&checked.storage) {
            return Err(Error::SharedStorage {
                variable: name,
                operand: Operand::Parameter,
                with: self.variables[other].name.clone(),
            });
        }
        let spec = ParamSpec::new(&*name, checked.range.len(), checked.dtype);
        let handle = self.lion.register(spec)?;
        self.storages.insert(checked.storage, self.variables.len());
        self.variables.push(Variable {
            name,
            var: var.clone(),
            handle,
            range: checked.range,
        });
        Ok(())
    }

    /// Removes a variable, which is no longer stepped nor saved, and frees its state. The variable itself keeps its value. It
    /// can be added again, with a new state.
    ///
    /// ```
    /// use candle_core::{Device, Var};
    /// use candle_nn::Optimizer;
    /// use lion::Lion;
    /// use lion_candle::LionCandle;
    ///
    /// let x = Var::new(&[1f32, -2.0], &Device::Cpu)?;
    /// let mut optimizer = LionCandle::empty(Lion::builder())?;
    /// optimizer.add("x", &x)?;
    /// optimizer.remove("x")?;
    /// assert_eq!(optimizer.lion().state_bytes(), 0);
    /// assert_eq!(
    ///     optimizer.remove("x").unwrap_err().to_string(),
    ///     "variable `x` is none of the 0 variables, wanted the name of one of them"
    /// );
    /// optimizer.add("x", &x)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownVariable`].
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        let index = self.variables.iter().position(|it| it.name == name);
        let index = index.ok_or_else(|| Error::UnknownVariable {
            variable: name.to_owned(),
            variables: self.variables.len(),
        })?;
        match self.lion.remove(self.variables[index].handle) {
            // The user has removed it from `lion_mut`.
            Ok(()) | Err(lion::Error::UnknownHandle { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.variables.remove(index);
        self.storages.retain(|_, other| *other != index);
        for other in self.storages.values_mut() {
            if *other > index {
                *other -= 1;
            }
        }
        Ok(())
    }

    /// Runs a step with arguments, such as the learning rate of this step or a limit on the norm of the gradients, and
    /// returns its report.
    ///
    /// A strided gradient is copied first. Nothing else is copied.
    ///
    /// The learning rate of the arguments replaces that of all variables, of groups that set `lr` too. Such a group can set
    /// [`lr_multiplier`](lion::Overrides::lr_multiplier) instead, which always applies.
    ///
    /// A variable without a gradient is an error, by the default of [`StepArgs::missing_gradients`]. A model with a
    /// [`BatchNorm`](candle_nn::BatchNorm) always has such variables, its running means and variances; to skip them, pass
    /// `args.missing_gradients(MissingGradient::Skip)`. [`Optimizer::step`] skips variables without gradients, as candle's
    /// optimizers do.
    ///
    /// ```
    /// use candle_core::{Device, Var};
    /// use candle_nn::Optimizer;
    /// use lion::{Lion, StepArgs};
    /// use lion_candle::LionCandle;
    ///
    /// let x = Var::new(&[3f32, -4.0], &Device::Cpu)?;
    /// let mut optimizer = LionCandle::empty(Lion::builder())?;
    /// optimizer.add("x", &x)?;
    /// let grads = x.sqr()?.affine(0.5, 0.0)?.sum_all()?.backward()?; // x itself
    /// let report = optimizer.step_with(StepArgs::new().lr(0.25).max_grad_norm(1.0), &grads)?;
    /// assert_eq!(report.grad_norm, Some(5.0));
    /// assert_eq!(x.to_vec1::<f32>()?, [2.75, -3.75]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoGradients`]; [`Error::Unsupported`] for a gradient on a device, of another shape than its variable, or
    /// without elements; [`Error::SharedStorage`] for a gradient that shares its memory with a variable; [`Error::InUse`];
    /// [`Error::Removed`]; [`Error::Candle`]; [`Error::Lion`] with the errors of [`Lion::step`].
    pub fn step_with(&mut self, args: StepArgs, grads: &GradStore) -> Result<&StepReport, Error> {
        self.check_registered()?;
        self.accept_lr(args)?;
        self.report = with_updates(&self.variables, &self.storages, grads, |updates| {
            self.lion.step_with(args, updates)
        })?;
        Ok(&self.report)
    }

    /// Counts what rounding would lose in a step with these gradients and arguments, with advice. Nothing changes.
    /// Variables without a gradient are left out. [`Lion::diagnose`] says more.
    ///
    /// ```
    /// use candle_core::{DType, Device, Var};
    /// use candle_nn::Optimizer;
    /// use lion::{Lion, StepArgs};
    /// use lion_candle::LionCandle;
    ///
    /// let x = Var::ones(4, DType::BF16, &Device::Cpu)?;
    /// let mut optimizer = LionCandle::empty(Lion::builder())?;
    /// optimizer.add("x", &x)?;
    /// let grads = x.sum_all()?.backward()?;
    /// let diagnosis = optimizer.diagnose(StepArgs::new().lr(1e-5), &grads)?;
    /// assert_eq!(diagnosis.parameters[0].lost_updates(), 1.0);
    /// assert!(diagnosis.to_string().ends_with("turn on stochastic_param"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`step_with`](LionCandle::step_with), except that for a variable without a gradient.
    pub fn diagnose(&mut self, args: StepArgs, grads: &GradStore) -> Result<Diagnosis, Error> {
        self.check_registered()?;
        self.accept_lr(args)?;
        let args = args.missing_gradients(MissingGradient::Skip);
        with_updates(&self.variables, &self.storages, grads, |updates| {
            self.lion.diagnose_with(args, updates)
        })
    }

    /// Returns an error if `lion` no longer has a variable. Its own error has no name, because it has only a handle.
    pub(crate) fn check_registered(&self) -> Result<(), Error> {
        let removed = |it: &&Variable| self.lion.info(it.handle).is_err();
        match self.variables.iter().find(removed) {
            Some(variable) => Err(Error::Removed {
                variable: variable.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Returns the error of a learning rate that [`set_learning_rate`](Optimizer::set_learning_rate) could not return, unless
    /// the arguments of the step replace that learning rate.
    fn accept_lr(&mut self, args: StepArgs) -> Result<(), Error> {
        if args.get_lr().is_some() {
            return Ok(());
        }
        if let Some(lr) = self.refused_lr() {
            // It may be valid now, with another weight decay.
            self.lion.set_lr(lr)?;
        }
        self.refused_lr = None;
        Ok(())
    }

    /// Returns the learning rate that `lion` has refused, unless another one has been set since.
    pub(crate) fn refused_lr(&self) -> Option<f64> {
        let refused = self.refused_lr.as_ref()?;
        let kept = refused.kept.to_bits() == self.lion.lr().to_bits();
        kept.then_some(refused.given)
    }

    /// Returns the report of the last step that succeeded: what was updated, and the blocks that were skipped because their
    /// new momentum is not finite. A step that returns an error keeps the report of the step before it. Before the first
    /// step the report is empty. [`Lion::info`] returns the name that belongs to a handle.
    pub fn step_report(&self) -> &StepReport {
        &self.report
    }

    /// Returns the optimizer of lion, for example to read the hyper-parameters or the size of the states.
    pub fn lion(&self) -> &Lion {
        &self.lion
    }

    /// Returns the optimizer of lion, for example to change hyper-parameters. To remove a variable, call
    /// [`remove`](LionCandle::remove) instead of [`Lion::remove`], after which steps, saves and loads return
    /// [`Error::Removed`]. Values of variables are neither saved nor loaded by [`Lion::save`] and [`Lion::load`].
    pub fn lion_mut(&mut self) -> &mut Lion {
        &mut self.lion
    }
}

/// Skips variables without a gradient, as candle's optimizers do, and lists them in the
/// [report](StepReport::without_gradient). The learning rate is that of [`Lion::lr`]. A group that sets `lr` keeps its own,
/// also when [`set_learning_rate`](Optimizer::set_learning_rate) sets another.
impl Optimizer for LionCandle {
    type Config = LionBuilder;

    /// Returns an optimizer without variables. Returns an error if `vars` contains variables, because they have no names
    /// here; see [`Error::NoNames`].
    fn new(vars: Vec<Var>, builder: LionBuilder) -> candle_core::Result<Self> {
        if !vars.is_empty() {
            let variables = vars.len();
            return Err(Error::NoNames { variables }.into());
        }
        Ok(Self::without_variables(builder)?)
    }

    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        let args = StepArgs::new().missing_gradients(MissingGradient::Skip);
        self.step_with(args, grads)?;
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.refused_lr().unwrap_or(self.lion.lr())
    }

    /// Sets the learning rate of all variables, except those in a group that sets `lr`. If it is not valid, steps return the
    /// error until another one is set, except those whose [arguments](StepArgs::lr) have a learning rate.
    fn set_learning_rate(&mut self, lr: f64) {
        let kept = self.lion.lr();
        let refused = self.lion.set_lr(lr).err();
        self.refused_lr = refused.map(|_| RefusedLr { given: lr, kept });
    }
}

/// Lists the settings and the variables, without their values.
impl fmt::Debug for LionCandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LionCandle")
            .field("lion", &self.lion)
            .finish_non_exhaustive()
    }
}

/// Takes the vectors of the variables out of their storages, calls `run` with the updates, and puts the vectors back.
/// `storages` has the index of a variable by the address of its storage.
fn with_updates<T>(
    variables: &[Variable],
    storages: &HashMap<usize, usize>,
    grads: &GradStore,
    run: impl FnOnce(Vec<Update<'_>>) -> Result<T, lion::Error>,
) -> Result<T, Error> {
    let mut tensors = Vec::with_capacity(variables.len());
    for variable in variables {
        let grad = grads.get(&variable.var).map(|grad| {
            if grad.shape() != variable.var.shape() {
                return Err(Error::Unsupported {
                    variable: variable.name.clone(),
                    operand: Operand::Gradient,
                    what: "shape",
                    given: format!("{:?}", grad.dims()),
                    wanted: format!("{:?}", variable.var.dims()),
                });
            }
            // Another reference to the same elements, unless they are strided.
            let grad = grad.contiguous().map_err(|source| Error::Candle {
                variable: variable.name.clone(),
                action: "copy its strided gradient",
                source,
            })?;
            let checked = check(&variable.name, Operand::Gradient, &grad)?;
            Ok((grad, checked.range))
        });
        tensors.push(grad.transpose()?);
    }
    if tensors.iter().all(Option::is_none) && !tensors.is_empty() {
        return Err(Error::NoGradients {
            variables: tensors.len(),
        });
    }

    // Holds the read locks of the gradients. A gradient in the storage of a variable would not be there during the
    // step, and its lock would keep the variable from being put back.
    let mut gradients = Vec::with_capacity(tensors.len());
    for (variable, tensor) in variables.iter().zip(&tensors) {
        let Some((tensor, range)) = tensor else {
            gradients.push(None);
            continue;
        };
        let (storage, _) = tensor.storage_and_layout();
        if let Some(&other) = storages.get(&address(&storage)) {
            return Err(Error::SharedStorage {
                variable: variable.name.clone(),
                operand: Operand::Gradient,
                with: variables[other].name.clone(),
            });
        }
        gradients.push(Some((storage, range.clone())));
    }
    let mut lent = Lent::take(variables)?;
    let mut updates = Vec::with_capacity(gradients.len());
    for (param, grad) in lent.elements().zip(&gradients) {
        let (variable, param) = param?;
        let grad = grad.as_ref().map(|(storage, range)| {
            // A copy of a variable that was made during a step never has elements. A variable of another optimizer, which could
            // be the gradient too, has none during its step.
            elements(storage, range.clone()).ok_or_else(|| Error::Unsupported {
                variable: variable.name.clone(),
                operand: Operand::Gradient,
                what: "memory",
                given: "without elements, as that of a copy from the time of a step".to_owned(),
                wanted: format!("{} elements", range.len()),
            })
        });
        updates.push(Update::new(variable.handle, param, grad.transpose()?));
    }
    Ok(run(updates)?)
}
