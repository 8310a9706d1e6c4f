// The table's row for Arm Compute Library: its s8 x s8 -> S32 GEMM.
//
// ACL's operator is configured for one shape and one m and holds on to a pointer to the weight it packed. Here one
// configured operator serves every weight of its shape: the weight is declared variable, so that each run packs it
// again, but through a scheduler that, unless we are packing, runs only the step that binds the packed memory. So a
// weight is packed once, into memory of ours, and any number of operators read it. The self-check proves for the
// linked library that this holds.
//
// ACL picks a micro-kernel by m, and micro-kernels differ in how they pack. A weight is packed for the one that ACL
// picks for a whole block of rows; a smaller block is run with the next larger m for which ACL picks the same.
#include "architecture.h"
#include "kernel.h"

#if defined(__aarch64__)
namespace ao_arm {
namespace {

// Modelled on Neoverse V1 (i8mm), N1 (dotprod) and A72: some 6,000 cycles a call, then multiply-accumulates.
double cost(const Problem& problem, const CpuFeatures& cpu) {
    const double macs_per_cycle = cpu.has(kI8mm) ? 113 : cpu.has(kDotprod) ? 30 : 12;
    const double panels = static_cast<double>((problem.n + kPanelColumns - 1) / kPanelColumns);
    return 6000.0 * panels + 16.0 * static_cast<double>(problem.n) * static_cast<double>(problem.k) / macs_per_cycle;
}

}  // namespace
}  // namespace ao_arm
#endif

#if AO_ARM_HAVE_ACL

#include <arm_compute/core/CPP/ICPPKernel.h>
#include <arm_compute/core/Version.h>
#include <arm_compute/core/experimental/Types.h>
#include <arm_compute/runtime/IScheduler.h>
#include <arm_compute/runtime/Scheduler.h>
#include <arm_compute/runtime/Tensor.h>
#include <arm_compute/runtime/experimental/operators/CpuGEMMLowp.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace ao_arm {
namespace {

using arm_compute::DataType;
using arm_compute::ICPPKernel;
using arm_compute::IScheduler;
using arm_compute::ITensorPack;
using arm_compute::QuantizationInfo;
using arm_compute::Tensor;
using arm_compute::TensorInfo;
using arm_compute::TensorShape;
using arm_compute::Window;
using Operator = arm_compute::experimental::op::CpuGEMMLowp;

// What an operator's run() is to do on this thread.
enum class Step {
    kMultiply,  // bind the packed weight, then multiply
    kPack,      // pack the weight
    kName,      // nothing but tell the micro-kernel's name
};

struct ThreadState {
    Step step = Step::kMultiply;
    std::string micro_kernel;
};

ThreadState& thread_state() {
    static thread_local ThreadState state;
    return state;
}

// Runs all of ACL's work on the thread that asks for it, which is one of torch's: the layer is already cut into one
// piece for each of them. ACL's own scheduler would bring threads of its own and let only one caller in at a time.
class CallingThreadScheduler final : public IScheduler {
   public:
    void set_num_threads(unsigned int) override {}
    unsigned int num_threads() const override { return 1; }

    void schedule(ICPPKernel* kernel, const Hints&) override {
        if (should_run(*kernel)) kernel->run(kernel->window(), info(0));
    }

    void schedule_op(ICPPKernel* kernel, const Hints&, const Window& window, ITensorPack& tensors) override {
        if (should_run(*kernel)) kernel->run_op(tensors, window, info(0));
    }

    // The only workloads of this operator pack the weight. One whose thread_id lies past the last thread packs nothing
    // and still binds the memory.
    void run_workloads(std::vector<Workload>& workloads) override {
        const Step step = thread_state().step;
        if (step == Step::kPack) {
            for (size_t i = 0; i < workloads.size(); ++i) workloads[i](info(static_cast<int>(i)));
        } else if (!workloads.empty()) {
            workloads[0](info(1));
        }
    }

    void run_tagged_workloads(std::vector<Workload>& workloads, const char*) override { run_workloads(workloads); }

   private:
    bool should_run(const ICPPKernel& kernel) {
        ThreadState& state = thread_state();
        constexpr const char* kPrefix = "CpuGemmAssemblyWrapperKernel/";
        const char* name = kernel.name();
        if (state.step == Step::kName && std::strncmp(name, kPrefix, std::strlen(kPrefix)) == 0)
            state.micro_kernel = name + std::strlen(kPrefix);
        return state.step == Step::kMultiply;
    }

    arm_compute::ThreadInfo info(int thread_id) {
        arm_compute::ThreadInfo info;
        info.num_threads = 1;
        info.thread_id = thread_id;
        info.cpu_info = &cpu_info();
        return info;
    }
};

TensorInfo matrix_info(int64_t rows, int64_t columns, DataType type) {
    const TensorShape shape(static_cast<size_t>(columns), static_cast<size_t>(rows));
    return type == DataType::S32 ? TensorInfo(shape, 1, type) : TensorInfo(shape, 1, type, QuantizationInfo(1.0f, 0));
}

// ACL's operator for (m, k) x (k, columns), not re-entrant.
class Gemm {
   public:
    Gemm(int64_t m, int64_t columns, int64_t k) {
        TensorInfo lhs = matrix_info(m, k, DataType::QASYMM8_SIGNED);
        TensorInfo rhs = matrix_info(k, columns, DataType::QASYMM8_SIGNED);
        TensorInfo dst = matrix_info(m, columns, DataType::S32);
        rhs.set_are_values_constant(false);
        operator_.configure(&lhs, &rhs, nullptr, &dst, arm_compute::GEMMInfo());
        lhs_.allocator()->init(lhs);
        rhs_.allocator()->init(rhs);
        dst_.allocator()->init(dst);
        pack_.add_const_tensor(arm_compute::ACL_SRC_0, &lhs_);
        pack_.add_tensor(arm_compute::ACL_SRC_1, &rhs_);
        pack_.add_tensor(arm_compute::ACL_DST, &dst_);
        for (const auto& slot : operator_.workspace()) {
            if (slot.size == 0) continue;
            slots_.push_back({std::make_unique<Tensor>(), static_cast<int64_t>(slot.size),
                              slot.slot == arm_compute::ACL_INT_VEC + kPackedSlot});
            slots_.back().tensor->allocator()->init(TensorInfo(TensorShape(slot.size), 1, DataType::U8));
            pack_.add_tensor(slot.slot, slots_.back().tensor.get());
        }
    }

    int64_t packed_bytes() const {
        for (const Slot& slot : slots_)
            if (slot.is_packed_weight) return slot.bytes;
        return 0;
    }

    int64_t scratch_bytes() const {
        int64_t bytes = kSlotAlignment;
        for (const Slot& slot : slots_)
            if (!slot.is_packed_weight) bytes += round_up(slot.bytes, kSlotAlignment);
        return bytes;
    }

    // `weight` is (k, columns) and read in Step::kPack only; `lhs` and `dst` are touched in Step::kMultiply only.
    bool run(Step step, const int8_t* lhs, const void* weight, uint8_t* packed, int32_t* dst, uint8_t* scratch) {
        bool imported = import(lhs_, lhs) & import(rhs_, weight) & import(dst_, dst);
        auto address = reinterpret_cast<uintptr_t>(scratch);
        address = (address + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
        for (Slot& slot : slots_) {
            imported &= import(*slot.tensor, slot.is_packed_weight ? packed : reinterpret_cast<void*>(address));
            if (!slot.is_packed_weight) address += static_cast<uintptr_t>(round_up(slot.bytes, kSlotAlignment));
        }
        if (!imported) return false;
        thread_state().step = step;
        operator_.run(pack_);
        thread_state().step = Step::kMultiply;
        return true;
    }

   private:
    static constexpr int kPackedSlot = 2;
    static constexpr int64_t kSlotAlignment = 4096;

    struct Slot {
        std::unique_ptr<Tensor> tensor;
        int64_t bytes;
        bool is_packed_weight;
    };

    static bool import(Tensor& tensor, const void* memory) {
        return bool(tensor.allocator()->import_memory(const_cast<void*>(memory)));
    }

    Operator operator_;
    Tensor lhs_, rhs_, dst_;
    std::vector<Slot> slots_;
    ITensorPack pack_;
};

// For the steps in which activations and results are not touched.
bool run_without_multiplying(Gemm& gemm, Step step, const int8_t* weight, uint8_t* packed, uint8_t* scratch) {
    alignas(64) static uint8_t untouched[64];
    return gemm.run(step, reinterpret_cast<int8_t*>(untouched), weight, packed, reinterpret_cast<int32_t*>(untouched),
                    scratch);
}

// Memory for trying an operator out.
struct Memory {
    explicit Memory(const Gemm& gemm, int64_t columns, int64_t k)
        : weight(new int8_t[columns * k]),
          packed(new uint8_t[gemm.packed_bytes()]()),
          scratch(new uint8_t[gemm.scratch_bytes()]) {}

    bool run(Gemm& gemm, Step step) {
        return run_without_multiplying(gemm, step, weight.get(), packed.get(), scratch.get());
    }

    std::unique_ptr<int8_t[]> weight;
    std::unique_ptr<uint8_t[]> packed;
    std::unique_ptr<uint8_t[]> scratch;
};

// What is known of one panel shape on this CPU.
struct Shape {
    std::string micro_kernel;  // what ACL picks for a whole block of rows
    bool binds_alone;          // whether binding a packed weight leaves it as it is; a few micro-kernels pack again
    int64_t packed_bytes;
    int64_t scratch_bytes;
    std::array<int8_t, kBlockRows + 1> rows_to_run = {};  // by rows wanted; 0: not known yet
};

// Shapes and idle operators, for all threads.
class Cache {
   public:
    static Cache& get() {
        static Cache cache;
        return cache;
    }

    const Shape& shape(int64_t columns, int64_t k) {
        const std::lock_guard<std::mutex> lock(mutex_);
        return shape_locked(columns, k);
    }

    int64_t rows_to_run(int64_t m, int64_t columns, int64_t k) {
        const std::lock_guard<std::mutex> lock(mutex_);
        Shape& shape = shape_locked(columns, k);
        int8_t& rows = shape.rows_to_run[m];
        for (int64_t candidate = m; rows == 0; ++candidate) {
            if (candidate == kBlockRows || name_of(candidate, columns, k) == shape.micro_kernel)
                rows = static_cast<int8_t>(candidate);
        }
        return rows;
    }

    std::unique_ptr<Gemm> take(int64_t m, int64_t columns, int64_t k) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            auto& idle = idle_[key(m, columns, k)];
            if (!idle.empty()) {
                std::unique_ptr<Gemm> gemm = std::move(idle.back());
                idle.pop_back();
                --idle_count_;
                return gemm;
            }
        }
        return std::make_unique<Gemm>(m, columns, k);
    }

    void give_back(std::unique_ptr<Gemm> gemm, int64_t m, int64_t columns, int64_t k) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (idle_count_ >= kMostIdle) {
            idle_.clear();
            idle_count_ = 0;
        }
        idle_[key(m, columns, k)].push_back(std::move(gemm));
        ++idle_count_;
    }

   private:
    static constexpr size_t kMostIdle = 2048;  // of some 10 KiB each

    Cache() { arm_compute::Scheduler::set(std::make_shared<CallingThreadScheduler>()); }

    static uint64_t key(int64_t m, int64_t columns, int64_t k) {
        return (static_cast<uint64_t>(k) << 24) | (static_cast<uint64_t>(columns) << 8) | static_cast<uint64_t>(m);
    }

    static std::string name_of(int64_t m, int64_t columns, int64_t k) {
        Gemm gemm(m, columns, k);
        Memory memory(gemm, columns, k);
        thread_state().micro_kernel.clear();
        memory.run(gemm, Step::kName);
        return thread_state().micro_kernel;
    }

    static bool binding_keeps_packed_bytes(int64_t columns, int64_t k) {
        Gemm gemm(kBlockRows, columns, k);
        Memory memory(gemm, columns, k);
        std::memset(memory.weight.get(), 1, columns * k);
        memory.run(gemm, Step::kPack);
        const std::vector<uint8_t> before(memory.packed.get(), memory.packed.get() + gemm.packed_bytes());
        std::memset(memory.weight.get(), 2, columns * k);
        memory.run(gemm, Step::kName);
        return std::memcmp(before.data(), memory.packed.get(), before.size()) == 0;
    }

    Shape& shape_locked(int64_t columns, int64_t k) {
        Shape& shape = shapes_[key(0, columns, k)];
        if (shape.micro_kernel.empty()) {
            const Gemm gemm(kBlockRows, columns, k);
            shape.packed_bytes = gemm.packed_bytes();
            shape.scratch_bytes = gemm.scratch_bytes();
            shape.binds_alone = binding_keeps_packed_bytes(columns, k);
            shape.micro_kernel = name_of(kBlockRows, columns, k);
        }
        return shape;
    }

    std::mutex mutex_;
    std::unordered_map<uint64_t, Shape> shapes_;
    std::unordered_map<uint64_t, std::vector<std::unique_ptr<Gemm>>> idle_;
    size_t idle_count_ = 0;
};

// ACL throws where it was built with exceptions. `body` returns bool.
template <class Body>
bool no_exception(const Body& body) {
    try {
        return body();
    } catch (...) {
        thread_state().step = Step::kMultiply;
        return false;
    }
}

// "24.11" of "arm_compute_version=v24.11 Build options: ..."
std::string acl_version() {
    const std::string text = arm_compute::build_information();
    const size_t begin = text.find("=v");
    if (begin == std::string::npos) return "unknown";
    return text.substr(begin + 2, text.find(' ', begin) - begin - 2);
}

int64_t panel_bytes(int64_t columns, int64_t k) { return Cache::get().shape(columns, k).packed_bytes; }

int64_t scratch_bytes(int64_t columns, int64_t k) { return Cache::get().shape(columns, k).scratch_bytes; }

std::string packing_format(int64_t n, int64_t k) {
    std::string format;
    no_exception([&] {
        format = "ACL " + acl_version() + " " + Cache::get().shape(std::min(n, kPanelColumns), k).micro_kernel;
        const int64_t rest = n % kPanelColumns;
        if (n > kPanelColumns && rest != 0) {
            const std::string& last = Cache::get().shape(rest, k).micro_kernel;
            if (format.find(last) == std::string::npos) format += "+" + last;
        }
        return true;
    });
    return format;
}

int64_t lhs_stride(int64_t k) { return k; }

// `weight` is (k, columns), as ACL wants it.
bool pack_transposed(const int8_t* weight, int64_t columns, int64_t k, uint8_t* panel) {
    return no_exception([&] {
        Gemm gemm(kBlockRows, columns, k);
        std::vector<uint8_t> scratch(gemm.scratch_bytes());
        return run_without_multiplying(gemm, Step::kPack, weight, panel, scratch.data());
    });
}

bool pack(const int8_t* values, int64_t columns, int64_t k, uint8_t* panel) {
    std::vector<int8_t> transposed(columns * k);
    constexpr int64_t kTile = 32;
    for (int64_t j0 = 0; j0 < columns; j0 += kTile)
        for (int64_t l0 = 0; l0 < k; l0 += kTile)
            for (int64_t j = j0; j < std::min(columns, j0 + kTile); ++j)
                for (int64_t l = l0; l < std::min(k, l0 + kTile); ++l) transposed[l * columns + j] = values[j * k + l];
    return pack_transposed(transposed.data(), columns, k, panel);
}

// Packing moves bytes and adds zeros. So packing the number of each byte, digit by digit, tells where it went.
bool unpack(const uint8_t* panel, int64_t columns, int64_t k, int8_t* values) {
    const int64_t bytes = panel_bytes(columns, k);
    std::vector<int64_t> number(bytes, 0);  // 1 + the place in (k, columns) that each packed byte came from; 0: padding
    std::vector<int8_t> digits(columns * k);
    std::vector<uint8_t> packed(bytes);
    for (int shift = 0; (columns * k) >> shift != 0; shift += 8) {
        for (int64_t i = 0; i < columns * k; ++i) digits[i] = static_cast<int8_t>(((i + 1) >> shift) & 0xFF);
        std::fill(packed.begin(), packed.end(), uint8_t(0));
        if (!pack_transposed(digits.data(), columns, k, packed.data())) return false;
        for (int64_t i = 0; i < bytes; ++i) number[i] |= static_cast<int64_t>(packed[i]) << shift;
    }
    int64_t found = 0;
    for (int64_t i = 0; i < bytes; ++i) {
        if (number[i] == 0) continue;
        const int64_t place = number[i] - 1;
        if (place >= columns * k) return false;
        values[place % columns * k + place / columns] = static_cast<int8_t>(panel[i]);
        ++found;
    }
    return found == columns * k;
}

bool gemm(const PanelGemm& call) {
    return no_exception([&] {
        Cache& cache = Cache::get();
        const int64_t m = cache.rows_to_run(call.m, call.columns, call.k);
        std::unique_ptr<Gemm> gemm = cache.take(m, call.columns, call.k);
        uint8_t* panel = const_cast<uint8_t*>(call.panel);
        const bool done = gemm->run(Step::kMultiply, call.lhs, panel, panel, call.dst, call.scratch);
        cache.give_back(std::move(gemm), m, call.columns, call.k);
        return done;
    });
}

// Whether two weights can take turns in one operator and unpacking inverts packing: what this file builds on.
bool self_check() {
    constexpr int64_t kM = 5, kN = 21, kK = 37;
    std::vector<int8_t> lhs(kBlockRows * kK);
    std::array<std::vector<int8_t>, 2> weights;
    std::array<std::vector<uint8_t>, 2> panels;
    uint32_t state = 1;
    const auto next = [&] {
        return static_cast<int8_t>(static_cast<int>((state = state * 1664525u + 1013904223u) >> 24) % 255 - 127);
    };
    for (int8_t& value : lhs) value = next();
    for (int w = 0; w < 2; ++w) {
        weights[w].resize(kN * kK);
        for (int8_t& value : weights[w]) value = next();
        panels[w].resize(panel_bytes(kN, kK));
        if (!pack(weights[w].data(), kN, kK, panels[w].data())) return false;
        std::vector<int8_t> unpacked(kN * kK);
        if (!unpack(panels[w].data(), kN, kK, unpacked.data()) || unpacked != weights[w]) return false;
    }
    std::vector<int32_t> dst(kBlockRows * kN);
    std::vector<uint8_t> scratch(scratch_bytes(kN, kK));
    for (int turn = 0; turn < 4; ++turn) {
        const int w = turn % 2;
        if (!gemm({lhs.data(), kK, false, panels[w].data(), nullptr, dst.data(), kN, kM, kN, kK, scratch.data()}))
            return false;
        for (int64_t i = 0; i < kM; ++i) {
            for (int64_t j = 0; j < kN; ++j) {
                int32_t sum = 0;
                for (int64_t l = 0; l < kK; ++l) sum += lhs[i * kK + l] * weights[w][j * kK + l];
                if (sum != dst[i * kN + j]) return false;
            }
        }
    }
    return true;
}

void reject(const Problem& problem, std::vector<std::string>& reasons) {
    static const bool works = no_exception(self_check);
    if (!works) reasons.push_back("the linked Arm Compute Library " + acl_version() + " failed the self-check");
    if (!works || problem.n < 1 || problem.k < 1) return;
    const int64_t last = problem.n > kPanelColumns ? problem.n % kPanelColumns : 0;
    for (const int64_t columns : {std::min(problem.n, kPanelColumns), last}) {
        if (columns == 0) continue;
        const TensorInfo lhs = matrix_info(kBlockRows, problem.k, DataType::QASYMM8_SIGNED);
        const TensorInfo rhs = matrix_info(problem.k, columns, DataType::QASYMM8_SIGNED);
        const TensorInfo dst = matrix_info(kBlockRows, columns, DataType::S32);
        const arm_compute::Status status = Operator::validate(&lhs, &rhs, nullptr, &dst, arm_compute::GEMMInfo());
        if (!bool(status)) {
            reasons.push_back("Arm Compute Library refuses it: " + status.error_description());
            continue;
        }
        no_exception([&] {
            const Shape& shape = Cache::get().shape(columns, problem.k);
            if (!shape.binds_alone)
                reasons.push_back("Arm Compute Library takes its " + shape.micro_kernel +
                                  " for this shape, which packs the weight on each call");
            return true;
        });
    }
}

}  // namespace

const Kernel kAclKernel = {"acl/s8s32+epilogue",
                           "Arm Compute Library's int8 GEMM on a weight packed once",
                           kNoFeature,
                           reject,
                           cost,
                           packing_format,
                           lhs_stride,
                           panel_bytes,
                           scratch_bytes,
                           pack,
                           unpack,
                           nullptr,
                           gemm,
                           false};

}  // namespace ao_arm

#else  // without ACL the row stays, to say why it is not taken

namespace ao_arm {
namespace {

void reject(const Problem& problem, std::vector<std::string>& reasons) {
    reject_elsewhere<Architecture::kAArch64>(problem, reasons);
    if (kArchitecture == Architecture::kAArch64)
        reasons.push_back(
            "this ao_arm was built without Arm Compute Library: install it (Debian, Ubuntu: libarm-compute-dev, 24.11 "
            "or newer; elsewhere set ACL_ROOT_DIR) and reinstall ao_arm");
}

#if defined(__aarch64__)
constexpr auto kCost = cost;
#else
constexpr double (*kCost)(const Problem&, const CpuFeatures&) = nullptr;
#endif

}  // namespace

const Kernel kAclKernel = {"acl/s8s32+epilogue",
                           "Arm Compute Library's int8 GEMM on a weight packed once",
                           kNoFeature,
                           reject,
                           kCost,
                           nullptr,
                           nullptr,
                           nullptr,
                           nullptr,
                           nullptr,
                           nullptr,
                           nullptr,
                           nullptr,
                           false};

}  // namespace ao_arm

#endif

namespace ao_arm {

std::vector<const Kernel*> acl_kernels() { return {&kAclKernel}; }

}  // namespace ao_arm
