// One case: poison, plan, forget the weights, run twice, compare.
#include "runner.hpp"

#include <algorithm>
#include <cstring>

#include "device.hpp"
#include "flexact/error.hpp"

namespace flexact::conformance {

namespace {

// Memory between guards; all of it holds a pattern that is NaN in every type until it is written.
class Guarded {
 public:
  explicit Guarded(std::size_t size) : size_(size), memory_(size + 3 * kGuard, kPattern) {
    start_ = kGuard;
    while (reinterpret_cast<std::uintptr_t>(memory_.data() + start_) % 64 != 0) ++start_;
  }
  std::byte* data() { return memory_.data() + start_; }
  // All of it, guards included, and where the memory between them begins.
  std::vector<std::byte>& whole() { return memory_; }
  std::size_t start() const { return start_; }
  std::size_t size() const { return size_; }
  bool guards_intact() const {
    const auto intact = [](std::byte b) { return b == kPattern; };
    const auto begin = memory_.begin() + static_cast<std::ptrdiff_t>(start_);
    return std::all_of(memory_.begin(), begin, intact) &&
           std::all_of(begin + static_cast<std::ptrdiff_t>(size_), memory_.end(), intact);
  }

 private:
  static constexpr std::size_t kGuard = 256;
  static constexpr std::byte kPattern{0xff};
  std::size_t size_;
  std::size_t start_;
  std::vector<std::byte> memory_;
};

// Memory that a GPU writes: a copy there, and back into the guarded memory here.
class Mirror {
 public:
  Mirror(Device& device, Guarded& host) : device_(device), host_(host), padded_(host.whole()) {
    // Moved so that the copy is aligned as the original is.
    padded_.insert(padded_.begin(), kAlign - host.start() % kAlign, std::byte{0xff});
    copy_ = static_cast<std::byte*>(device.copy(padded_.data(), padded_.size()));
  }
  std::byte* data() { return copy_ + (padded_.size() - host_.whole().size()) + host_.start(); }
  void fetch() {
    device_.read(padded_.data(), copy_, padded_.size());
    std::copy(padded_.end() - static_cast<std::ptrdiff_t>(host_.whole().size()), padded_.end(),
              host_.whole().begin());
  }

 private:
  static constexpr std::size_t kAlign = 64;
  Device& device_;
  Guarded& host_;
  std::vector<std::byte> padded_;
  std::byte* copy_;
};

// Runs the plan once into `output`, on whichever memory its backend works.
void run_plan(const Plan& plan, const CaseData& data, const ParameterTable& values, Device* device,
              Guarded& workspace, Guarded& output) {
  const auto or_null = [](std::byte* pointer, std::size_t size) {
    return size == 0 ? nullptr : pointer;
  };
  if (device == nullptr) {
    plan.run(data.inputs(output.data()), values, or_null(workspace.data(), workspace.size()),
             workspace.size(), nullptr);
    return;
  }
  Mirror workspace_there(*device, workspace);
  Mirror output_there(*device, output);
  MoeInputs inputs = device->copy(data.inputs(nullptr));
  inputs.output = output_there.data();
  plan.run(inputs, device->copy(values), or_null(workspace_there.data(), workspace.size()),
           workspace.size(), nullptr);
  workspace_there.fetch();
  output_there.fetch();
}

Outcome failed(std::string message) {
  return {Outcome::Kind::Failed, std::move(message), 0};
}

// The largest difference over its bound; NaN counts as infinite.
double worst_ratio(const std::vector<double>& actual, const Expected& expected,
                   std::size_t& where) {
  double worst = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double difference = std::abs(actual[i] - expected.value[i]);
    const double ratio = std::isfinite(difference) ? difference / expected.bound[i] : INFINITY;
    if (ratio > worst) {
      worst = ratio;
      where = i;
    }
  }
  return worst;
}

// The same problem with a mistake in it, and what a kernel with that mistake would compute.
struct Mistaken {
  Function function;
  MoeProblem problem;
  CaseData data;
  ParameterTable values;
  std::optional<std::vector<double>> result;  // none: the case has no room for the mistake
};

Mistaken mistake(const Prepared& prepared, Fault fault) {
  Mistaken m{prepared.test.function(), prepared.data.problem(), prepared.data, {}, std::nullopt};
  m.values = m.data.values();
  switch (fault) {
    case Fault::None:
      break;
    case Fault::Zeros:
      m.result = std::vector<double>(prepared.expected.value.size(), 0.0);
      break;
    case Fault::Function:
      m.function = Function::expression(m.problem.pairing == Pairing::None ? "abs(x)" : "abs(g)*u");
      m.values = {};
      m.result = m.data
                     .expected([&m](double g, double u, const std::vector<double>&) {
                       return m.problem.pairing == Pairing::None ? std::abs(g) : std::abs(g) * u;
                     })
                     .value;
      break;
    case Fault::GateAndUp: {
      if (m.problem.pairing != Pairing::Concat && m.problem.pairing != Pairing::UpFirst) break;
      m.problem.pairing = m.problem.pairing == Pairing::Concat ? Pairing::UpFirst : Pairing::Concat;
      const Function f = m.function;
      m.result = m.data
                     .expected([f](double g, double u, const std::vector<double>& v) {
                       return f.reference(u, g, v);
                     })
                     .value;
      break;
    }
    case Fault::Expert:
      m.data.shift_experts();
      m.result = m.data.expected(m.function).value;
      break;
  }
  return m;
}

}  // namespace

Outcome run(const Prepared& prepared, const Variant& variant, Fault fault) {
  Mistaken m = mistake(prepared, fault);
  const Backend& backend = *variant.backend;
  if (fault != Fault::None) {
    std::size_t ignored = 0;
    // Only a mistake that shows well above the bound must be found.
    if (!m.result || worst_ratio(*m.result, prepared.expected, ignored) < 2) {
      return {Outcome::Kind::Skipped, {}, 0};
    }
  }
  try {
    const std::optional<Refusal> refusal = backend.refuse(m.problem, m.function);
    select(variant);
    std::optional<Device> device;
    std::unique_ptr<Plan> plan;
    try {
      if (!refusal && backend.device() != "cpu") device.emplace();
      const MoeWeights weights = m.data.weights();
      plan = backend.plan(m.problem, m.function, device ? device->copy(weights) : weights);
    } catch (const Error& error) {
      if (refusal && error.code() == ErrorCode::Unsupported && !refusal->reason.empty()) {
        return {Outcome::Kind::Refused, refusal->reason, 0};
      }
      throw;
    }
    if (refusal)
      return failed("refuse() says no (" + refusal->reason + "), but plan() makes a plan");
    if (plan->describe().empty()) return failed("describe() is empty");
    m.data.destroy_weights();

    const MoeProblem& p = m.problem;
    const std::size_t element = p.io_dtype == DType::Float32 ? 4 : 2;
    const auto count = static_cast<std::size_t>(m.data.output_count());
    Guarded output(count * element), again(count * element);
    for (Guarded* target : {&output, &again}) {
      Guarded workspace(plan->workspace_bytes(m.data.inputs(nullptr).tokens));
      run_plan(*plan, m.data, m.values, device ? &*device : nullptr, workspace, *target);
      if (!workspace.guards_intact()) return failed("writes outside the workspace");
      if (!target->guards_intact()) return failed("writes outside the output");
    }
    if (std::memcmp(output.data(), again.data(), output.size()) != 0) {
      return failed("a second run gives other bits");
    }
    if (fault == Fault::Zeros) std::memset(output.data(), 0, output.size());

    std::vector<double> actual(count);
    for (std::size_t i = 0; i < count; ++i)
      actual[i] = decode(output.data() + i * element, p.io_dtype);
    std::size_t where = 0;
    const double worst = worst_ratio(actual, prepared.expected, where);
    if (worst <= 1) return {Outcome::Kind::Passed, {}, worst, prepared.expected.size > 0};
    const auto hidden = static_cast<std::size_t>(p.hidden);
    return {Outcome::Kind::Failed,
            "row " + std::to_string(where / hidden) + ", column " + std::to_string(where % hidden) +
                ": " + std::to_string(actual[where]) + " instead of " +
                std::to_string(prepared.expected.value[where]) + ", " + std::to_string(worst) +
                " times the allowed difference; outputs are of size " +
                std::to_string(prepared.expected.size),
            worst};
  } catch (const std::exception& error) {
    return failed(std::string("throws: ") + error.what());
  }
}

std::optional<std::string> check_refusals(const Backend& backend) {
  const Function swiglu = Function::named("swiglu"), relu = Function::named("relu");
  struct Meaningless {
    const char* what;
    Function function;
    void (*change)(MoeProblem&);
  };
  const Meaningless list[] = {
      {"bias with the router weight on the input", swiglu,
       [](MoeProblem& p) { p.bias13 = p.router_weight_on_input = true; }},
      {"down bias with the router weight on the input", swiglu,
       [](MoeProblem& p) { p.bias2 = p.router_weight_on_input = true; }},
      {"a gated function without a gate", swiglu, [](MoeProblem& p) { p.pairing = Pairing::None; }},
      {"a unary function that was not lifted", relu, [](MoeProblem&) {}},
      {"gate and up in two tensors", swiglu, [](MoeProblem& p) { p.pairing = Pairing::Separate; }},
  };
  for (const Meaningless& entry : list) {
    MoeProblem p;
    p.experts = 2;
    p.top_k = 1;
    p.hidden = 8;
    p.intermediate = 8;
    entry.change(p);
    const std::optional<Refusal> refusal = backend.refuse(p, entry.function);
    if (!refusal) return std::string(entry.what) + " is not refused";
    if (refusal->reason.empty()) return std::string(entry.what) + " is refused without a reason";
    try {
      backend.plan(p, entry.function, {});
      return std::string(entry.what) + " is refused, but planned";
    } catch (const Error& error) {
      if (error.code() != ErrorCode::Unsupported) {
        return std::string(entry.what) + ": plan() throws " + error.what();
      }
    }
  }
  return std::nullopt;
}

}  // namespace flexact::conformance
