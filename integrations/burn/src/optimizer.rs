//! The optimizer of a module, and a step.

use crate::Error;
use crate::lend::Lent;
use crate::tensor::slice;
use crate::visit::{NoGradients, Visited, trained};
use burn_core::module::Module;
use burn_optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn_optim::{GradAdaptor, GradientsParams};
use lion::backend::Operand;
use lion::tensor::Update;
use lion::{
    Device, Diagnosis, Handle, Lion, LionBuilder, MissingGradient, Overrides, ParamSpec, StepArgs,
    StepReport,
};

/// The Lion optimizer for modules of burn, which it steps in place. [`Lion`] has the formula.
///
/// The documentation of the crate has an example. A state belongs to the path of its parameter in the module, such as
/// `layer.weight`, and is allocated in the first step of the parameter, or by [`register`](LionBurn::register).
#[derive(Debug)]
pub struct LionBurn {
    pub(crate) lion: Lion,
}

/// What a step has done.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The report of lion: what was updated, and the blocks that were skipped because their new momentum is not finite.
    pub step: StepReport,
    /// The parameters that the step had to copy. [`Lion::info`] returns their names.
    ///
    /// The usual cause is that another tensor had the same elements, as that of a clone of the module that is alive during
    /// the step. A parameter is also copied if it was a part of another tensor or was strided, as after a transposition;
    /// this happens once, because the copy replaces it. Elements that are still in a file, as after a lazy load, are read
    /// in the first step and not listed.
    pub copied: Vec<Handle>,
}

impl LionBurn {
    /// Returns an optimizer without parameters. They are added as steps find them. Use one optimizer per
    /// module: parameters of two modules with the same path would share one momentum.
    ///
    /// # Errors
    /// [`Error::Lion`] with the errors of [`LionBuilder::build`].
    pub fn new(builder: LionBuilder) -> Result<Self, Error> {
        let lion = builder.device_if_unset(Device::Cpu).build()?;
        Ok(LionBurn { lion })
    }

    /// Adds the parameters of a module that require gradients, unless they are there, and allocates their states. Without
    /// it, the first step does so.
    ///
    /// ```
    /// use burn::nn::LinearConfig;
    /// use burn::prelude::*;
    /// use lion::Lion8bit;
    /// use lion_burn::LionBurn;
    ///
    /// let model = LinearConfig::new(128, 64).init(&Device::flex().autodiff());
    /// let mut optimizer = LionBurn::new(Lion8bit::builder())?;
    /// optimizer.register(&model)?;
    /// assert_eq!(optimizer.lion().state_bytes(), (128 * 64 + 32 * 4) + 64 * 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a parameter on a device of another backend than flex, or of another type than `f32`,
    /// `f16` and `bf16`; [`Error::SharedId`]; [`Error::Lion`] with the errors of [`Lion::register`].
    pub fn register<M: Module>(&mut self, module: &M) -> Result<(), Error> {
        self.add(&trained(module, NoGradients, false)?)?;
        Ok(())
    }

    /// Runs a step with a learning rate, and updates the parameters of the module in place.
    ///
    /// A parameter without a gradient is skipped, as by burn's optimizers.
    ///
    /// `lr` replaces the learning rates of the builder and the groups, which are not used. Their multipliers apply to it.
    /// It is a number, or what a scheduler of burn returns, which may have learning rates by group of burn. If several of
    /// burn's groups contain a parameter, the last one counts; of lion's groups it is the first one.
    ///
    /// ```
    /// use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
    /// use burn::nn::LinearConfig;
    /// use burn::optim::GradientsParams;
    /// use burn::prelude::*;
    /// use lion::Lion8bit;
    /// use lion_burn::LionBurn;
    ///
    /// let device = Device::flex().autodiff();
    /// let mut model = LinearConfig::new(4, 2).init(&device);
    /// let mut optimizer = LionBurn::new(Lion8bit::builder().weight_decay(0.1))?;
    /// let mut scheduler = LinearLrSchedulerConfig::new(1e-3, 1e-5, 100).init()?;
    /// for _ in 0..3 {
    ///     let loss = model.forward(Tensor::<2>::ones([1, 4], &device)).sum();
    ///     let grads = GradientsParams::from_grads(loss.backward(), &model);
    ///     optimizer.step(scheduler.step(), &mut model, grads)?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`step_with`](LionBurn::step_with).
    ///
    /// # Panics
    /// As [`step_with`](LionBurn::step_with), and if the learning rate is
    /// `ModuleLearningRate::default()`, which has none.
    pub fn step<M: Module>(
        &mut self,
        lr: impl Into<ModuleLearningRate>,
        module: &mut M,
        grads: impl Into<GradAdaptor>,
    ) -> Result<Report, Error> {
        let args = StepArgs::new().missing_gradients(MissingGradient::Skip);
        self.step_at(Some(lr.into()), args, module, grads.into())
    }

    /// Runs a step with arguments, such as a limit on the norm of the gradients. Without a learning rate in the
    /// arguments, it uses those of the builder and the groups. A parameter that requires a gradient and has none is an
    /// error, unless the arguments [skip it](StepArgs::missing_gradients).
    ///
    /// A parameter is copied if another tensor has its elements; see [`Report::copied`]. So is a gradient if another
    /// tensor has its elements, or if it is strided.
    ///
    /// ```
    /// use burn::module::Param;
    /// use burn::optim::GradientsParams;
    /// use burn::prelude::*;
    /// use lion::{Lion, StepArgs};
    /// use lion_burn::LionBurn;
    ///
    /// #[derive(Module, Debug)]
    /// struct Model {
    ///     x: Param<Tensor<1>>,
    /// }
    ///
    /// let device = Device::flex().autodiff();
    /// let mut model = Model { x: Param::from_data([3.0, -4.0], &device) };
    /// let mut optimizer = LionBurn::new(Lion::builder())?;
    /// let loss = model.x.val().square().sum() * 0.5; // its gradient is x
    /// let grads = GradientsParams::from_grads(loss.backward(), &model);
    /// let args = StepArgs::new().lr(0.25).max_grad_norm(1.0);
    /// let report = optimizer.step_with(args, &mut model, grads)?;
    /// assert_eq!(report.step.grad_norm, Some(5.0));
    /// assert_eq!(model.x.val().into_data(), [2.75f32, -3.75].into());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoGradients`]; [`Error::Unsupported`] for a parameter or a gradient on a device of another backend than
    /// flex, or of another type than `f32`, `f16` and `bf16`, and for a gradient of another shape than its parameter;
    /// [`Error::SharedId`]; [`Error::NotMapped`]; [`Error::Lion`] with the errors of [`Lion::register`] and
    /// [`Lion::step`].
    ///
    /// # Panics
    /// burn panics if a gradient was registered under the id of a parameter of another rank.
    pub fn step_with<M: Module>(
        &mut self,
        args: StepArgs,
        module: &mut M,
        grads: impl Into<GradAdaptor>,
    ) -> Result<Report, Error> {
        self.step_at(None, args, module, grads.into())
    }

    /// Counts what rounding would lose in a step with these arguments, as [`Lion::diagnose`] does. Nothing changes.
    /// Parameters without a gradient are skipped. Parameters and gradients are copied for it. It takes gradients of one device,
    /// because burn returns the sum of those of several devices only once.
    ///
    /// ```
    /// use burn::nn::LinearConfig;
    /// use burn::optim::GradientsParams;
    /// use burn::prelude::*;
    /// use burn::tensor::DType;
    /// use lion::{Lion, StepArgs};
    /// use lion_burn::LionBurn;
    ///
    /// let device = Device::flex().autodiff();
    /// let x = Tensor::<2>::ones([1, 8], (&device, DType::BF16));
    /// let mut model = LinearConfig::new(8, 8).with_bias(false).init(&device);
    /// model.weight = model.weight.map(|_| Tensor::ones([8, 8], (&device, DType::BF16)).require_grad());
    /// let grads = GradientsParams::from_grads(model.forward(x).sum().backward(), &model);
    /// let mut optimizer = LionBurn::new(Lion::builder())?;
    /// let diagnosis = optimizer.diagnose(StepArgs::new().lr(1e-5), &model, &grads)?;
    /// assert_eq!(diagnosis.parameters[0].lost_updates(), 1.0); // 1 - 1e-5 is 1 in bf16
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`step_with`](LionBurn::step_with).
    ///
    /// # Panics
    /// As [`step_with`](LionBurn::step_with).
    pub fn diagnose<M: Module>(
        &mut self,
        args: StepArgs,
        module: &M,
        grads: &GradientsParams,
    ) -> Result<Diagnosis, Error> {
        let args = args.missing_gradients(MissingGradient::Skip);
        let mut trained = trained(module, grads, true)?;
        check_gradients(&trained, &args)?;
        let added = self.add(&trained)?;
        let diagnosis = self.dry_run(args, &mut trained);
        self.remove(added);
        diagnosis
    }

    /// Returns the optimizer of lion, for example to read the hyper-parameters or the size of the states.
    pub fn lion(&self) -> &Lion {
        &self.lion
    }

    /// Returns the optimizer of lion, for example to change hyper-parameters. If a parameter is removed from it, the next
    /// step adds it with a new state.
    pub fn lion_mut(&mut self) -> &mut Lion {
        &mut self.lion
    }

    /// Registers the parameters that are not registered, and returns the handles of those. After an error it has changed
    /// nothing.
    pub(crate) fn add<'v>(
        &mut self,
        parameters: impl IntoIterator<Item = &'v Visited>,
    ) -> Result<Vec<Handle>, Error> {
        let mut added = Vec::new();
        for parameter in parameters {
            let name = &*parameter.name;
            if self.lion.handle(name).is_ok() {
                continue;
            }
            let spec = ParamSpec::new(name, parameter.len(), parameter.dtype);
            match self.lion.register(spec) {
                Ok(handle) => added.push(handle),
                Err(error) => {
                    self.remove(added);
                    return Err(error.into());
                }
            }
        }
        Ok(added)
    }

    /// Removes parameters that [`add`](LionBurn::add) has registered.
    pub(crate) fn remove(&mut self, added: Vec<Handle>) {
        for handle in added {
            // It fails for unknown handles only.
            let _ = self.lion.remove(handle);
        }
    }

    fn step_at<M: Module>(
        &mut self,
        lr: Option<ModuleLearningRate>,
        args: StepArgs,
        module: &mut M,
        grads: GradAdaptor,
    ) -> Result<Report, Error> {
        let trained = trained(module, grads, false)?;
        check_gradients(&trained, &args)?;
        let added = self.add(&trained)?;
        let report = match lr {
            Some(lr) => self.run_at(&lr, args, module, &trained),
            None => run(&mut self.lion, args, module, &trained),
        };
        if report.is_err() {
            self.remove(added);
        }
        report
    }

    /// Runs a step with the learning rates of burn.
    fn run_at<M: Module>(
        &mut self,
        lr: &ModuleLearningRate,
        args: StepArgs,
        module: &mut M,
        trained: &[Visited],
    ) -> Result<Report, Error> {
        let with_gradient = trained.iter().filter(|it| it.gradient.is_some());
        let rates: Vec<_> = with_gradient
            .map(|it| (&*it.name, lr.lr_from_param(it.id, Some(&it.name))))
            .collect();
        let base = lr.base();
        if rates
            .iter()
            .all(|(_, rate)| rate.to_bits() == base.to_bits())
        {
            return run(&mut self.lion, args.lr(base), module, trained);
        }
        // The arguments of a step have one learning rate, so each parameter gets its own for the time of the step.
        let mut rated = Rated {
            lion: &mut self.lion,
            kept: Vec::with_capacity(rates.len()),
        };
        for (name, rate) in rates {
            rated.set(name, rate)?;
        }
        run(rated.lion, args, module, trained)
    }

    fn dry_run(&mut self, args: StepArgs, trained: &mut [Visited]) -> Result<Diagnosis, Error> {
        let mut updates = Vec::with_capacity(trained.len());
        for parameter in trained {
            let (Some(gradient), Some(values)) = (&parameter.gradient, &mut parameter.values)
            else {
                continue;
            };
            let handle = self.lion.handle(&parameter.name)?;
            let gradient = slice(&parameter.name, Operand::Gradient, gradient)?;
            let values = crate::tensor::slice_mut(&parameter.name, values)?;
            updates.push(Update::new(handle, values, Some(gradient.into())));
        }
        Ok(self.lion.diagnose_with(args, updates)?)
    }
}

/// An optimizer whose parameters have other learning rates than their own. Dropping it gives them back theirs, also after
/// an error and while a panic unwinds; otherwise a save would keep those of the step.
struct Rated<'o> {
    lion: &'o mut Lion,
    kept: Vec<(Handle, Overrides)>,
}

impl Rated<'_> {
    fn set(&mut self, name: &str, rate: f64) -> Result<(), Error> {
        let handle = self.lion.handle(name)?;
        let overrides = self.lion.info(handle)?.overrides;
        self.lion.set_overrides(handle, overrides.lr(rate))?;
        self.kept.push((handle, overrides));
        Ok(())
    }
}

impl Drop for Rated<'_> {
    fn drop(&mut self) {
        for (handle, overrides) in self.kept.drain(..) {
            // It fails for unknown handles and invalid values only, and the parameter had these values.
            let _ = self.lion.set_overrides(handle, overrides);
        }
    }
}

/// Runs a step of registered parameters.
fn run<M: Module>(
    lion: &mut Lion,
    args: StepArgs,
    module: &mut M,
    trained: &[Visited],
) -> Result<Report, Error> {
    let mut handles = Vec::with_capacity(trained.len());
    let mut gradients = Vec::with_capacity(trained.len());
    let mut places = Vec::with_capacity(trained.len());
    let mut without_gradient = Vec::new();
    for parameter in trained {
        let handle = lion.handle(&parameter.name)?;
        let Some(gradient) = &parameter.gradient else {
            without_gradient.push(handle);
            continue;
        };
        gradients.push(slice(&parameter.name, Operand::Gradient, gradient)?);
        places.push(parameter.place());
        handles.push(handle);
    }
    let mut lent = Lent::take(module, places.into_iter())?;
    let mut updates = Vec::with_capacity(handles.len());
    for ((elements, &handle), gradient) in lent.elements().zip(&handles).zip(gradients) {
        updates.push(Update::new(handle, elements?, Some(gradient.into())));
    }
    let mut step = lion.step_with(args, updates)?;
    step.without_gradient.extend(without_gradient);
    let copied = lent.copied().iter().map(|&index| handles[index]).collect();
    Ok(Report { step, copied })
}

/// Checks that there are gradients.
fn check_gradients(trained: &[Visited], args: &StepArgs) -> Result<(), Error> {
    let mut missing = trained.iter().filter(|it| it.gradient.is_none());
    if missing.clone().count() == trained.len() {
        return Err(Error::NoGradients {
            parameters: trained.len(),
        });
    }
    match missing.next() {
        Some(parameter) if args.get_missing_gradients() == MissingGradient::Error => {
            Err(lion::Error::MissingGradient {
                parameter: parameter.name.clone(),
            }
            .into())
        }
        _ => Ok(()),
    }
}
