"use strict";

SwaggerUIBundle({
  url: "../openapi.yaml",
  dom_id: "#description",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // it would ask another host
});
