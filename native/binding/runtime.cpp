#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <sstream>
#include <string>

#include "binding/binding.hpp"
#include "runtime/isa.hpp"
#include "runtime/program.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock {

void bind_runtime(nb::module_& module) {
    module.def("set_num_threads", [](int n) { ThreadPool::instance().resize(n); },
               nb::call_guard<nb::gil_scoped_release>(),
               "Threads that kernels run on, the calling one included. Raises RuntimeError when the system gives fewer.");
    module.def("num_threads", [] { return ThreadPool::instance().size(); });

    nb::list names, built;
    for (const char* name : kIsaNames) names.append(name);
    std::istringstream listed(PENSTOCK_BUILT_ISAS);
    for (std::string name; listed >> name;) built.append(name);
    module.attr("ISAS") = nb::tuple(names);  // the place of a name is the number that kernels are called with
    module.attr("BUILT_SETS") = nb::tuple(built);

    nb::class_<Program>(module, "Program", "Kernel calls with fixed arguments, recorded once, run many times.")
        .def(nb::init<>())
        .def("__len__", &Program::size)
        .def("record", [](Program& self) { Program::recording() = &self; },
             "From now on calls on this thread are added to this program instead of being run.")
        .def_static("stop_recording", [] { Program::recording() = nullptr; })
        .def("run", &Program::run, nb::call_guard<nb::gil_scoped_release>())
        .def("run_timed", &Program::run_timed, nb::call_guard<nb::gil_scoped_release>(),
             "Runs, and answers (name, nanoseconds) of every call.");
    module.def("recording", [] { return Program::recording() != nullptr; });
}

}  // namespace penstock
