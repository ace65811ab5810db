// Starts the page. What is done besides the usual makes the forms work as they stand:
// optional fields begin empty and are not sent, a change of the body's media type begins
// anew, files in lists are chosen like any other, and pictures in JSON are shown.
const picturesOf = (reply) => {
  try {
    const { data, output_format: format } = JSON.parse(reply);
    return data.map(({ b64_json: base64, url }) => url ?? `data:image/${format ?? "png"};base64,${base64}`);
  } catch {
    return [];
  }
};

window.onload = () => {
  const forms = (system) => {
    const h = system.React.createElement;
    return {
      components: {
        // Swagger UI looks this one up, and complains that it has none.
        JsonSchema_string_binary: (props) => h(props.getComponent("JsonSchema_string"), props),
      },
      wrapComponents: {
        responseBody: (Original) => (props) =>
          h("div", null, ...picturesOf(props.content).map((src) => h("img", { src })), h(Original, props)),
        ParameterIncludeEmpty: (Original) => (props) =>
          h(Original, { ...props, isIncludedOptions: { ...props.isIncludedOptions, defaultValue: false } }),
      },
      statePlugins: {
        oas3: {
          wrapActions: {
            setRequestContentType: (original, { oas3Actions, oas3Selectors }) => (change) => {
              if (oas3Selectors.requestContentType(...change.pathMethod) !== change.value) {
                oas3Actions.setRequestBodyValue({ value: undefined, pathMethod: change.pathMethod });
              }
              return original(change);
            },
          },
        },
      },
      afterLoad({ fn }) {
        const sample = fn.getSampleSchema;
        const inForm = (schema) => {
          const { type, example } = schema.toJS ? schema.toJS() : schema;
          return type !== "array" && type !== "object" && example === undefined;
        };
        // Fields of forms are asked for without a media type.
        this.fn.getSampleSchema = (schema, mediaType, ...more) =>
          mediaType === false && inForm(schema) ? "" : sample(schema, mediaType, ...more);
      },
    };
  };
  window.ui = SwaggerUIBundle({
    dom_id: "#swagger-ui",
    url: "/openapi.json",
    deepLinking: true,
    defaultModelsExpandDepth: -1,
    displayRequestDuration: true,
    tryItOutEnabled: true,
    // The validator's badge would have the browser call a foreign site.
    validatorUrl: "none",
    layout: "StandaloneLayout",
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    plugins: [SwaggerUIBundle.plugins.DownloadUrl, forms],
  });
};
