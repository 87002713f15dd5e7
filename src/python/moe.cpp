// Backends and plans in Python. Tensors arrive as (address, dtype, shape, strides): the caller (the
// Python file moe.py) owns them, keeps them alive for the call and has checked devices.
#include "flexact/moe.hpp"

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <tuple>

#include "cuda/backend.hpp"
#include "cuda/fp4_layer.hpp"
#include "flexact/backend.hpp"
#include "flexact/error.hpp"
#include "module.hpp"
#include "moe/problem.hpp"
#include "moe/quantised.hpp"

namespace flexact::python {

namespace {

using Tensor =
    std::tuple<std::uintptr_t, std::string, std::vector<std::int64_t>, std::vector<std::int64_t>>;

DType to_dtype(std::string_view name) {
  for (const DType dtype : {DType::Float32, DType::BFloat16, DType::Float16, DType::Float8E4M3,
                            DType::UInt8, DType::Int32, DType::Int64})
    if (to_string(dtype) == name) return dtype;
  throw Error(ErrorCode::InvalidArgument, "unknown dtype '" + std::string(name) + "'");
}

TensorView to_view(const Tensor& tensor) {
  const auto& [address, dtype, shape, strides] = tensor;
  TensorView view;
  if (shape.size() > view.shape.size() || shape.size() != strides.size())
    throw Error(ErrorCode::InvalidArgument, "a tensor of rank " + std::to_string(shape.size()), {},
                "at most " + std::to_string(view.shape.size()) + " dimensions");
  view.data = reinterpret_cast<const void*>(address);
  view.dtype = to_dtype(dtype);
  view.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), view.shape.begin());
  std::copy(strides.begin(), strides.end(), view.strides.begin());
  return view;
}

MoeWeights to_weights(const std::map<std::string, Tensor>& tensors) {
  MoeWeights weights;
  const std::map<std::string, TensorView MoeWeights::*> fields = {
      {"w13", &MoeWeights::w13},
      {"w2", &MoeWeights::w2},
      {"w13_bias", &MoeWeights::w13_bias},
      {"w2_bias", &MoeWeights::w2_bias},
      {"w13_scale", &MoeWeights::w13_scale},
      {"w2_scale", &MoeWeights::w2_scale},
      {"w13_global_scale", &MoeWeights::w13_global_scale},
      {"w2_global_scale", &MoeWeights::w2_global_scale},
      {"a13_scale", &MoeWeights::a13_scale},
      {"a2_scale", &MoeWeights::a2_scale}};
  for (const auto& [name, tensor] : tensors) {
    const auto field = fields.find(name);
    if (field == fields.end())
      throw Error(ErrorCode::InvalidArgument, "unknown weight '" + name + "'");
    weights.*field->second = to_view(tensor);
  }
  return weights;
}

// A hash of elements spread over tensors: whether their memory was written since, as far as a
// sample can tell. Each expert (slice of the first dimension) is met at least once, so that an
// update of one expert is seen, and a few hundred reads bound the cost.
class ContentSample {
 public:
  using Source = std::tuple<std::uintptr_t, std::int64_t, std::vector<std::int64_t>,
                            std::vector<std::int64_t>>;

  explicit ContentSample(const std::vector<Source>& sources) {
    for (const Source& source : sources) add(source);
    expected_ = digest();
  }

  bool unchanged() const { return digest() == expected_; }

 private:
  struct Place {
    const unsigned char* address;
    std::size_t bytes;
  };

  void add(const Source& source) {
    const auto& [address, element_size, shape, strides] = source;
    std::int64_t elements = 1;
    for (const std::int64_t size : shape) elements *= size;
    if (elements == 0) return;
    const std::int64_t slices = shape.empty() ? 1 : shape[0];
    const std::int64_t count =
        std::min<std::int64_t>(elements, std::clamp<std::int64_t>(2 * slices, 32, 512));
    std::uint64_t random = 0x9e3779b97f4a7c15u;
    for (std::int64_t i = 0; i < count; ++i) {
      std::int64_t offset = 0;
      for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        const std::int64_t index =
            axis == 0 ? i % shape[0]
                      : static_cast<std::int64_t>((random >> 33) %
                                                  static_cast<std::uint64_t>(shape[axis]));
        offset += index * strides[axis];
      }
      places_.push_back({reinterpret_cast<const unsigned char*>(address) + offset * element_size,
                         static_cast<std::size_t>(element_size)});
    }
  }

  std::uint64_t digest() const {
    std::uint64_t hash = 14695981039346656037u;
    for (const Place& place : places_) {
      std::uint64_t element = 0;
      std::memcpy(&element, place.address, std::min(place.bytes, sizeof element));
      hash = (hash ^ element) * 1099511628211u;
    }
    return hash;
  }

  std::vector<Place> places_;
  std::uint64_t expected_ = 0;
};

// Scratch memory of the calling thread. It only grows, so that steady state allocates nothing.
class Workspace {
 public:
  void* reserve(std::size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      const std::size_t rounded = (bytes + 63) / 64 * 64;
      memory_.reset(std::aligned_alloc(64, rounded));
      if (!memory_) throw std::bad_alloc();
      size_ = rounded;
    }
    return memory_.get();
  }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  std::size_t size_ = 0;
};

Workspace& workspace() {
  thread_local Workspace instance;
  return instance;
}

MoeInputs to_inputs(const Tensor& hidden_states, const Tensor& topk_weights, const Tensor& topk_ids,
                    std::uintptr_t output) {
  MoeInputs inputs;
  inputs.hidden_states = to_view(hidden_states);
  inputs.topk_weights = to_view(topk_weights);
  inputs.topk_ids = to_view(topk_ids);
  inputs.tokens = inputs.hidden_states.shape[0];
  inputs.output = reinterpret_cast<void*>(output);
  return inputs;
}

void run(const Plan& plan, const Tensor& hidden_states, const Tensor& topk_weights,
         const Tensor& topk_ids, std::uintptr_t output, std::uintptr_t values, std::int64_t rows,
         std::int64_t columns) {
  const MoeInputs inputs = to_inputs(hidden_states, topk_weights, topk_ids, output);
  const ParameterTable table{reinterpret_cast<const float*>(values), rows, columns};

  const nb::gil_scoped_release unlocked;
  void* const scratch = workspace().reserve(plan.workspace_bytes(inputs.tokens));
  plan.run(inputs, table, scratch, workspace().size(), nullptr);
}

// On memory and a stream of the caller's.
void run_on(const Plan& plan, const Tensor& hidden_states, const Tensor& topk_weights,
            const Tensor& topk_ids, std::uintptr_t output, std::uintptr_t values, std::int64_t rows,
            std::int64_t columns, std::uintptr_t workspace, std::size_t workspace_size,
            std::uintptr_t stream) {
  const MoeInputs inputs = to_inputs(hidden_states, topk_weights, topk_ids, output);
  const ParameterTable table{reinterpret_cast<const float*>(values), rows, columns};
  const nb::gil_scoped_release unlocked;
  plan.run(inputs, table, reinterpret_cast<void*>(workspace), workspace_size,
           reinterpret_cast<void*>(stream));
}

void bind_problem(nb::module_& module) {
  nb::class_<MoeProblem>(module, "MoeProblem",
                         "The part of a MoE block that does not change between calls.")
      .def(
          "__init__",
          [](MoeProblem* self, std::int64_t experts, std::int64_t top_k, std::int64_t hidden,
             std::int64_t intermediate, std::string_view format, std::string_view io_dtype,
             std::string_view pairing, bool bias13, bool bias2, bool router_weight_on_input,
             bool combine, float routed_scaling_factor) {
            new (self) MoeProblem{experts,
                                  top_k,
                                  hidden,
                                  intermediate,
                                  parse_format(format),
                                  to_dtype(io_dtype),
                                  parse_pairing(pairing),
                                  bias13,
                                  bias2,
                                  router_weight_on_input,
                                  combine,
                                  routed_scaling_factor};
          },
          nb::kw_only(), nb::arg("experts"), nb::arg("top_k"), nb::arg("hidden"),
          nb::arg("intermediate"), nb::arg("format") = "bf16", nb::arg("io_dtype") = "bfloat16",
          nb::arg("pairing") = "concat", nb::arg("bias13") = false, nb::arg("bias2") = false,
          nb::arg("router_weight_on_input") = false, nb::arg("combine") = true,
          nb::arg("routed_scaling_factor") = 1.0f)
      .def_ro("experts", &MoeProblem::experts)
      .def_ro("top_k", &MoeProblem::top_k)
      .def_ro("hidden", &MoeProblem::hidden)
      .def_ro("intermediate", &MoeProblem::intermediate)
      .def_prop_ro("format", [](const MoeProblem& self) { return to_string(self.format); })
      .def_prop_ro("io_dtype", [](const MoeProblem& self) { return to_string(self.io_dtype); })
      .def_prop_ro("pairing", [](const MoeProblem& self) { return to_string(self.pairing); })
      .def_ro("bias13", &MoeProblem::bias13)
      .def_ro("bias2", &MoeProblem::bias2)
      .def_ro("router_weight_on_input", &MoeProblem::router_weight_on_input)
      .def_ro("combine", &MoeProblem::combine)
      .def_ro("routed_scaling_factor", &MoeProblem::routed_scaling_factor);
}

void bind_plan(nb::module_& module) {
  nb::class_<Plan>(module, "Plan", "A layer made ready: weights packed, function compiled.")
      .def("workspace_bytes", &Plan::workspace_bytes, nb::arg("tokens"))
      .def(
          "reserve",
          [](const Plan& self, std::int64_t tokens) {
            workspace().reserve(self.workspace_bytes(tokens));
          },
          nb::arg("tokens"),
          "Sizes the calling thread's scratch memory for calls of up to `tokens` tokens.")
      .def("resident_bytes", &Plan::resident_bytes)
      .def("describe", &Plan::describe)
      .def(
          "unpack",
          [](const Plan& self, std::uintptr_t w13, std::uintptr_t w2) {
            const nb::gil_scoped_release unlocked;
            self.unpack(reinterpret_cast<void*>(w13), reinterpret_cast<void*>(w2));
          },
          nb::arg("w13"), nb::arg("w2"), "Writes the weights back, contiguous, to two addresses.")
      .def("run", &run, nb::arg("hidden_states"), nb::arg("topk_weights"), nb::arg("topk_ids"),
           nb::arg("output"), nb::arg("values"), nb::arg("rows"), nb::arg("columns"))
      .def("run_on", &run_on, nb::arg("hidden_states"), nb::arg("topk_weights"),
           nb::arg("topk_ids"), nb::arg("output"), nb::arg("values"), nb::arg("rows"),
           nb::arg("columns"), nb::arg("workspace"), nb::arg("workspace_size"), nb::arg("stream"),
           "run() on scratch memory and a stream of the caller's.");
}

DenseProblem dense_problem(std::string_view pairing, std::string_view dtype,
                           std::string_view result) {
  DenseProblem problem{parse_pairing(pairing), to_dtype(dtype)};
  if (result == "fp8_block") problem.result = DenseResult::Fp8Groups;
  if (result == "fp8_channel") problem.result = DenseResult::Fp8Rows;
  return problem;
}

// act_and_mul on a GPU. `result`: "fp8_block", "fp8_channel", or empty for x's own type.
void bind_dense(nb::module_& module) {
  nb::class_<DensePlan>(module, "DensePlan", "act_and_mul of one function and kind of x on a GPU.")
      .def("describe", &DensePlan::describe)
      .def(
          "run",
          [](const DensePlan& self, std::uintptr_t x, std::int64_t x_stride, std::uintptr_t out,
             std::int64_t out_stride, std::int64_t rows, std::int64_t intermediate,
             std::uintptr_t scales, std::int64_t scale_row_stride, std::int64_t scale_group_stride,
             std::uintptr_t values, std::int64_t value_columns, std::uintptr_t stream) {
            const DenseCall call{rows,
                                 intermediate,
                                 reinterpret_cast<const void*>(x),
                                 x_stride,
                                 reinterpret_cast<void*>(out),
                                 out_stride,
                                 reinterpret_cast<float*>(scales),
                                 scale_row_stride,
                                 scale_group_stride};
            const ParameterTable table{reinterpret_cast<const float*>(values), 1, value_columns};
            const nb::gil_scoped_release unlocked;
            self.run(call, table, reinterpret_cast<void*>(stream));
          },
          nb::kw_only(), nb::arg("x"), nb::arg("x_stride"), nb::arg("out"), nb::arg("out_stride"),
          nb::arg("rows"), nb::arg("intermediate"), nb::arg("scales") = 0,
          nb::arg("scale_row_stride") = 0, nb::arg("scale_group_stride") = 0, nb::arg("values"),
          nb::arg("value_columns"), nb::arg("stream"));
  module.def(
      "refuse_dense",
      [](const std::string& name, const Function& function, std::string_view pairing,
         std::string_view dtype,
         std::string_view result) -> std::optional<std::pair<std::string, std::string>> {
        if (const auto refusal =
                backend(name).refuse_dense(dense_problem(pairing, dtype, result), function))
          return std::pair(refusal->reason, refusal->hint);
        return std::nullopt;
      },
      nb::arg("backend"), nb::arg("function"), nb::kw_only(), nb::arg("pairing"), nb::arg("dtype"),
      nb::arg("result") = "");
  module.def(
      "plan_dense",
      [](const std::string& name, const Function& function, std::string_view pairing,
         std::string_view dtype, std::string_view result) {
        const DenseProblem problem = dense_problem(pairing, dtype, result);
        const nb::gil_scoped_release unlocked;
        return backend(name).plan_dense(problem, function);
      },
      nb::arg("backend"), nb::arg("function"), nb::kw_only(), nb::arg("pairing"), nb::arg("dtype"),
      nb::arg("result") = "");
}

}  // namespace

void bind_moe(nb::module_& module) {
  bind_problem(module);
  bind_plan(module);
  bind_dense(module);
  nb::class_<ContentSample>(
      module, "ContentSample",
      "Whether tensors (address, element size, shape, strides) were written since.")
      .def(nb::init<const std::vector<ContentSample::Source>&>(), nb::arg("tensors"))
      .def("unchanged", &ContentSample::unchanged);
  module.def(
      "backends",
      [] {
        std::vector<std::string> names;
        for (const Backend* each : backends()) names.push_back(each->name());
        return names;
      },
      "The backends of this build in order of preference.");
  module.def(
      "backend_device", [](const std::string& name) { return backend(name).device(); },
      nb::arg("name"), "Where a backend's tensors are: 'cpu' or 'cuda'.");
  module.def(
      "refuse",
      [](const std::string& name, const MoeProblem& problem,
         const Function& function) -> std::optional<std::pair<std::string, std::string>> {
        if (const auto refusal = backend(name).refuse(problem, function))
          return std::pair(refusal->reason, refusal->hint);
        return std::nullopt;
      },
      nb::arg("backend"), nb::arg("problem"), nb::arg("function"),
      "None where the backend computes exactly this; else the reason and a hint.");
  module.def(
      "validate_weights",
      [](const MoeProblem& problem, const std::map<std::string, Tensor>& tensors) {
        moe::validate(problem);
        moe::validate_weights(problem, to_weights(tensors));
      },
      nb::arg("problem"), nb::arg("weights"),
      "Raises InvalidArgument where weights or scales contradict the problem's format.");
  module.def(
      "plan",
      [](const std::string& name, const MoeProblem& problem, const Function& function,
         const std::map<std::string, Tensor>& tensors) {
        const MoeWeights weights = to_weights(tensors);
        const nb::gil_scoped_release unlocked;
        return backend(name).plan(problem, function, weights);
      },
      nb::arg("backend"), nb::arg("problem"), nb::arg("function"), nb::arg("weights"));
  module.def(
      "copied_scale_bytes",
      [](const MoeProblem& problem) {
        return moe::is_fp4(problem.format) ? cuda::Fp4Layer::scale_bytes(problem) : 0;
      },
      nb::arg("problem"),
      "Bytes of the weight scales that the backend cutlass copies into an order of its own.");
  module.def(
      "act_and_mul",
      [](const Function& function, std::uintptr_t values, std::int64_t rows_of_values,
         std::int64_t columns, std::string_view pairing, std::string_view dtype, std::int64_t rows,
         std::int64_t intermediate, std::uintptr_t x, std::int64_t x_stride, std::uintptr_t out,
         std::int64_t out_stride) {
        const ParameterTable table{reinterpret_cast<const float*>(values), rows_of_values, columns};
        const Pairing parsed = parse_pairing(pairing);
        const DType element = to_dtype(dtype);
        const nb::gil_scoped_release unlocked;
        act_and_mul(function, table, parsed, element, rows, intermediate,
                    reinterpret_cast<const void*>(x), x_stride, reinterpret_cast<void*>(out),
                    out_stride);
      },
      nb::arg("function"), nb::arg("values"), nb::arg("value_rows"), nb::arg("value_columns"),
      nb::arg("pairing"), nb::arg("dtype"), nb::arg("rows"), nb::arg("intermediate"), nb::arg("x"),
      nb::arg("x_stride"), nb::arg("out"), nb::arg("out_stride"));
}

}  // namespace flexact::python
