/** \file
 * The former name of histo/c_api.h, for programs that include it.
 */
#pragma once

#include "histo/c_api.h"
